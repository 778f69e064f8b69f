// Vectors of floats as wide as the CPU's registers, for kernels that GCC or Clang compiles.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <type_traits>

#if defined(__AVX512F__)
constexpr int kBytes = 64, kRegisters = 32;
#elif defined(__AVX__)
constexpr int kBytes = 32, kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kBytes = 16, kRegisters = 32;
#else
constexpr int kBytes = 16, kRegisters = 16;
#endif
constexpr int kLanes = kBytes / 4;

typedef float Vector __attribute__((vector_size(kBytes)));
typedef int32_t Ints __attribute__((vector_size(kBytes)));
typedef float Unaligned __attribute__((vector_size(kBytes), aligned(4), may_alias));

#define ALWAYS __attribute__((always_inline))
#define INLINE inline ALWAYS

INLINE Vector fill(float value) { return value - Vector{}; }
INLINE Vector load(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }
INLINE void store(float* to, Vector value) { *reinterpret_cast<Unaligned*>(to) = value; }

// Loads up to `count` floats, and zeros into the other lanes.
INLINE Vector load_some(const float* from, int64_t count) {
  if (count >= kLanes) return load(from);
  Vector value = {};
  if (count > 0) std::memcpy(&value, from, count * sizeof(float));
  return value;
}

INLINE void store_some(float* to, Vector value, int64_t count) {
  if (count >= kLanes) return store(to, value);
  if (count > 0) std::memcpy(to, &value, count * sizeof(float));
}

inline int64_t whole_vectors(int64_t size) { return (size + kLanes - 1) / kLanes * kLanes; }

using Memory = std::unique_ptr<float, decltype(&std::free)>;

// Allocates aligned, uninitialized memory; null if there is not enough.
inline Memory room(int64_t count) {
  const int64_t bytes = (count * sizeof(float) + 64) / 64 * 64;  // at least 64, since 0 may give null
  return {static_cast<float*>(std::aligned_alloc(64, bytes)), &std::free};
}

// Allocates aligned memory that is filled with zeros; null if there is not enough.
inline Memory zeros(int64_t count) {
  Memory memory = room(count);
  if (memory) std::memset(memory.get(), 0, count * sizeof(float));
  return memory;
}
