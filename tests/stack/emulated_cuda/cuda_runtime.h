// As much of CUDA as fused.cu uses, for a machine without a GPU: a block's threads are fibers of one thread, which take
// turns at every __syncthreads(). Blocks follow one another.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "xla/ffi/api/ffi.h"

#define __global__
#define __device__
#define __host__
#define __shared__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct alignas(16) float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

struct dim3 {
  unsigned x, y, z;
  explicit dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline dim3 threadIdx, blockIdx, blockDim;

using std::min;
inline float __fdividef(float x, float y) { return x / y; }

namespace {
constexpr int kSharedMemory = 163 * 1024;  // of a block, at most, on an A100; later ones have more
float4 shared[kSharedMemory / sizeof(float4)];
}  // namespace

namespace emulated {

constexpr size_t kStack = 64 * 1024;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack = std::make_unique<char[]>(kStack);
  bool ended = false;
};
inline std::vector<Fiber>* fibers;
inline ucontext_t scheduler;
inline const std::function<void()>* body;

inline void enter() {
  (*body)();
  (*fibers)[threadIdx.x].ended = true;
}

// Whether a block, which has so many bytes of shared memory, has kept to them.
inline bool run_block(const std::function<void()>& function, size_t bytes) {
  std::vector<Fiber> all(blockDim.x);
  fibers = &all, body = &function;
  // What a block reads of shared memory without having written it is no number.
  std::memset(shared, 0xff, sizeof(shared));
  for (Fiber& fiber : all) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = &scheduler;
    makecontext(&fiber.context, enter, 0);
  }
  for (bool left = true; left;) {
    left = false;
    for (unsigned i = 0; i < all.size(); ++i) {
      if (all[i].ended) continue;
      threadIdx.x = i;
      swapcontext(&scheduler, &all[i].context);
      left |= !all[i].ended;
    }
  }
  const auto* const memory = reinterpret_cast<const unsigned char*>(shared);
  return std::all_of(memory + bytes, memory + sizeof(shared), [](unsigned char byte) { return byte == 0xff; });
}

}  // namespace emulated

inline void __syncthreads() {
  const unsigned thread = threadIdx.x;
  swapcontext(&(*emulated::fibers)[thread].context, &emulated::scheduler);
}

struct CUstream_st {};
using cudaStream_t = CUstream_st*;

// XLA has none on a CPU.
template <>
struct xla::ffi::CtxDecoding<xla::ffi::PlatformStream<cudaStream_t>> {
  using Type = cudaStream_t;
  static std::optional<Type> Decode(const XLA_FFI_Api*, XLA_FFI_ExecutionContext*, xla::ffi::DiagnosticEngine&) {
    return nullptr;
  }
};

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
inline const char* cudaGetErrorString(cudaError_t) { return "invalid argument"; }

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int bytes) {
  return bytes > kSharedMemory ? cudaErrorInvalidValue : cudaSuccess;
}

template <typename Kernel, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, Kernel* kernel, Arguments... arguments) {
  if (config->blockDim.x > 256) return cudaErrorInvalidValue;  // the kernels' own launch bound
  blockDim = config->blockDim;
  for (unsigned x = 0; x < config->gridDim.x; ++x) {
    blockIdx = dim3(x);
    if (!emulated::run_block([&] { kernel(arguments...); }, config->dynamicSmemBytes)) return cudaErrorInvalidValue;
  }
  return cudaSuccess;
}
