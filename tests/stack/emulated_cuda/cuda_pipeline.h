// Copies that are asynchronous on a GPU are made when they are waited for. Until then there is NaN where they go, so that
// a read before the wait, or of what was there before, gives NaN.
#pragma once

#include <deque>

#include "cuda_runtime.h"

namespace emulated {
struct Copy {
  void* to;
  const void* from;
  size_t size;
};
inline std::vector<std::vector<Copy>> open(1024);
inline std::vector<std::deque<std::vector<Copy>>> committed(1024);
}  // namespace emulated

inline void __pipeline_memcpy_async(void* to, const void* from, size_t size) {
  std::memset(to, 0xff, size);
  emulated::open[threadIdx.x].push_back({to, from, size});
}
inline void __pipeline_commit() {
  emulated::committed[threadIdx.x].push_back(std::move(emulated::open[threadIdx.x]));
  emulated::open[threadIdx.x].clear();
}
inline void __pipeline_wait_prior(size_t left) {
  auto& batches = emulated::committed[threadIdx.x];
  for (; batches.size() > left; batches.pop_front()) {
    for (const auto& copy : batches.front()) std::memcpy(copy.to, copy.from, copy.size);
  }
}
