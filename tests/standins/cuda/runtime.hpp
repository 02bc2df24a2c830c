// What the parts of the stand-in know of each other. Device memory is ordinary memory that is mapped twice: at addresses that nobody may
// touch, which is what callers get, and, as far beyond them as ALIAS says, where the stand-in itself reads and writes it.
// tests/standins/gpu/path/gpu_standin/memory.py has the same numbers, and makes allocations of its own in the first half.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>

constexpr uintptr_t SPACE = uintptr_t(16) << 40;
constexpr uintptr_t HALF = uintptr_t(1) << 40;
constexpr uintptr_t ALIAS = 2 * HALF;

inline bool on_device(const void *address) {
  auto at = reinterpret_cast<uintptr_t>(address);
  return SPACE <= at && at < SPACE + 2 * HALF;
}

// Where the host finds what lies at an address of either kind.
template <class T>
T *host(T *address) {
  return on_device(address) ? reinterpret_cast<T *>(reinterpret_cast<uintptr_t>(address) + ALIAS) : address;
}

// Does what a stream is given, at once; in a stream that is being captured, with each launch of the graph.
void enqueue(cudaStream_t stream, std::function<void()> work);

// Has a kernel computed; false where it is none of those that the stand-in knows.
bool launch(const char *name, void **arguments, cudaStream_t stream);
