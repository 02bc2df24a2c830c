// The kernels of ONNX Runtime's CUDA provider that the tests' models need, by what their mangled names contain. Their arguments are those
// of the templates in onnxruntime/core/providers/cuda.

#include <cmath>
#include <cstring>
#include <string>

#include "runtime.hpp"

namespace {

template <class T>
T argument(void **arguments, int index) {
  return *static_cast<T *>(arguments[index]);
}

template <class T>
void binary(void **arguments, bool adds, cudaStream_t stream) {
  auto *left = host(argument<const T *>(arguments, 0)), *right = host(argument<const T *>(arguments, 1));
  auto *out = host(argument<T *>(arguments, 2));
  int count = argument<int>(arguments, 4);
  enqueue(stream, [=] {
    for (int at = 0; at < count; at++) out[at] = adds ? left[at] + right[at] : left[at] - right[at];
  });
}

// _BinaryElementWiseSimple<IncL, IncR, T, T1, T2, FuncT, …>(const T1 *, const T2 *, T *, FuncT, int)
bool element_wise(const std::string &name, void **arguments, cudaStream_t stream) {
  const std::string start = "24_BinaryElementWiseSimpleILb1ELb1E";
  size_t found = name.find(start);
  bool adds = name.find("6OP_Add") != std::string::npos;
  if (found == std::string::npos || (!adds && name.find("6OP_Sub") == std::string::npos)) return false;
  std::string type = name.substr(found + start.size());
  if (type[0] == 'i') return binary<int32_t>(arguments, adds, stream), true;
  if (type[0] == 'l') return binary<int64_t>(arguments, adds, stream), true;
  if (type[0] == 'f') return binary<float>(arguments, adds, stream), true;
  if (type[0] == 'd') return binary<double>(arguments, adds, stream), true;
  if (type.rfind("6__half", 0) == 0) return binary<_Float16>(arguments, adds, stream), true;
  return false;
}

// _UnaryElementWise<float, float, OP_Relu<float>, …>(const float *, float *, FuncT, int64_t)
void relu(void **arguments, cudaStream_t stream) {
  auto *in = host(argument<const float *>(arguments, 0));
  auto *out = host(argument<float *>(arguments, 1));
  auto count = argument<int64_t>(arguments, 3);
  enqueue(stream, [=] {
    for (int64_t at = 0; at < count; at++) out[at] = std::fmax(in[at], 0.0f);
  });
}

// softmax_warp_forward<float, float, float, …>(float *, const float *, int batch_size, int stride, int element_count)
void softmax(void **arguments, cudaStream_t stream) {
  auto *out = host(argument<float *>(arguments, 0));
  auto *in = host(argument<const float *>(arguments, 1));
  int rows = argument<int>(arguments, 2), stride = argument<int>(arguments, 3), count = argument<int>(arguments, 4);
  enqueue(stream, [=] {
    for (int row = 0; row < rows; row++) {
      const float *from = in + int64_t(row) * stride;
      float *to = out + int64_t(row) * stride, most = -INFINITY, sum = 0;
      for (int at = 0; at < count; at++) most = std::fmax(most, from[at]);
      for (int at = 0; at < count; at++) sum += to[at] = std::exp(from[at] - most);
      for (int at = 0; at < count; at++) to[at] /= sum;
    }
  });
}

}  // namespace

bool launch(const char *raw_name, void **arguments, cudaStream_t stream) {
  std::string name(raw_name);
  auto has = [&](const char *part) { return name.find(part) != std::string::npos; };
  if (element_wise(name, arguments, stream)) return true;
  if (has("17_UnaryElementWiseIff") && has("7OP_Relu")) return relu(arguments, stream), true;
  if (has("20softmax_warp_forwardIfff")) return softmax(arguments, stream), true;
  return false;
}
