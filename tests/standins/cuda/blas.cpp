// As much of cuBLAS as matrix products of FP32 need: column-major, as there.

#include "runtime.hpp"

namespace {

struct Handle {
  cudaStream_t stream;
};

constexpr int SUCCESS = 0;

}  // namespace

extern "C" {

int cublasCreate_v2(Handle **handle) {
  *handle = new Handle{};
  return SUCCESS;
}
int cublasDestroy_v2(Handle *handle) {
  delete handle;
  return SUCCESS;
}
int cublasSetStream_v2(Handle *handle, cudaStream_t stream) {
  handle->stream = stream;
  return SUCCESS;
}
int cublasSetMathMode(Handle *, int) { return SUCCESS; }
int cublasGetMathMode(Handle *, int *mode) {
  *mode = 0;
  return SUCCESS;
}

int cublasSgemm_v2(Handle *handle, int turned_a, int turned_b, int rows, int columns, int depth, const float *alpha, const float *a,
                   int step_a, const float *b, int step_b, const float *beta, float *c, int step_c) {
  float scale = *alpha, kept = *beta;
  const float *left = host(a), *right = host(b);
  float *out = host(c);
  enqueue(handle->stream, [=] {
    for (int column = 0; column < columns; column++) {
      for (int row = 0; row < rows; row++) {
        float sum = 0;
        for (int at = 0; at < depth; at++) {
          float l = turned_a ? left[at + int64_t(row) * step_a] : left[row + int64_t(at) * step_a];
          float r = turned_b ? right[column + int64_t(at) * step_b] : right[at + int64_t(column) * step_b];
          sum += l * r;
        }
        float &place = out[row + int64_t(column) * step_c];
        // What is there need not be a number where nothing is kept of it.
        place = scale * sum + (kept != 0 ? kept * place : 0);
      }
    }
  });
  return SUCCESS;
}

}  // extern "C"
