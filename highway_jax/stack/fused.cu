// Stacks of highway and plain layers on an NVIDIA GPU, forward and backward, for highway_jax/stack/fused.py.
//
// A block computes all layers of a run for `rows` examples of its batch. Between layers, only what the backward pass
// needs leaves the multiprocessor. Internally, an array of a layer is (width, rows), so examples are contiguous. A
// thread owns four examples of some units in all layers: at the end of a product, it has their pre-activations in
// registers, where it applies the cell. Operands are in shared memory and are read as four floats along the axis of
// summation, while those of the next layer are being copied. Products are computed in float32 without tensor cores.

#include <cuda_pipeline.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;

constexpr int kThreads = 256;  // of a block, at most
constexpr int kRows = 4;       // examples of a thread

// The number of units that a thread owns; half as many in highway layers, which have two affine maps.
template <int kParts>
constexpr int kUnits = 10 / kParts;

// The tile of the gradient of a layer's weights that a thread computes.
template <int kParts>
constexpr int kInputs = kParts == 2 ? 5 : 6;
template <int kParts>
constexpr int kOutputs = kParts == 2 ? 4 : 5;

struct Shape {
  int layers, width, batch, rows, tiles;

  __host__ __device__ int columns() const { return rows * tiles; }                     // of an array that is kept
  __host__ __device__ int pitch() const { return odd(rows); }                          // of an array in shared memory
  __host__ __device__ int side(int parts) const { return parts * width; }              // of the affine maps
  __host__ __device__ int groups(int parts) const { return up(width, 10 / parts); }    // of units, one for each thread
  __host__ __device__ static int up(int count, int size) { return (count + size - 1) / size; }
  __host__ __device__ static int fours(int count) { return 4 * up(count, 4); }         // rounded up to whole vectors
  __host__ __device__ static int odd(int count) { return fours(count) | 4; }  // an odd number of vectors: no conflicts

  // Shared memory in floats: for a layer's kernel as each pass reads it, and in total.
  __host__ __device__ int forward_kernel(int parts) const { return 10 * groups(parts) * fours(width); }
  __host__ __device__ int backward_kernel(int parts) const { return 10 / parts * groups(parts) * fours(side(parts)); }
  __host__ __device__ int forward_memory(int parts) const {
    return 2 * (forward_kernel(parts) + fours(side(parts)) + fours(width) * pitch());
  }
  __host__ __device__ int backward_memory(int parts) const {
    return backward_kernel(parts) + (fours(width) + fours(side(parts))) * pitch();
  }
};

__device__ __forceinline__ float4 load(const float* from) { return *reinterpret_cast<const float4*>(from); }
__device__ __forceinline__ void store(float* to, float4 value) { *reinterpret_cast<float4*>(to) = value; }

template <typename Function>
__device__ __forceinline__ float4 each(Function function) {
  return {function(0), function(1), function(2), function(3)};
}
__device__ __forceinline__ float at(const float4& value, int index) {
  return index == 0 ? value.x : index == 1 ? value.y : index == 2 ? value.z : value.w;
}
__device__ __forceinline__ void add(float4& sum, float factor, const float4& value) {
  sum.x = fmaf(factor, value.x, sum.x);
  sum.y = fmaf(factor, value.y, sum.y);
  sum.z = fmaf(factor, value.z, sum.z);
  sum.w = fmaf(factor, value.w, sum.w);
}

// Activation and gate return NaN for NaN, so that a diverged run is noticed.
__device__ __forceinline__ float activate(float z, bool tanh) { return tanh ? tanhf(z) : z < 0.0f ? 0.0f : z; }
__device__ __forceinline__ float gate(float z) { return __fdividef(1.0f, 1.0f + expf(-z)); }
__device__ __forceinline__ float slope(float h, bool tanh) { return tanh ? 1.0f - h * h : h > 0.0f ? 1.0f : 0.0f; }

__device__ __forceinline__ void clear(float* memory, int count) {
  for (int i = threadIdx.x; i < count; i += blockDim.x) memory[i] = 0.0f;
}

// How the threads of a block share an array of `width` columns: the first row and column of a thread, and the steps to
// its next ones.
struct Share {
  int row, column, rows, columns;

  __device__ __forceinline__ explicit Share(int width) {
    columns = min(width, static_cast<int>(blockDim.x));
    rows = blockDim.x / columns;
    row = threadIdx.x / columns;
    column = threadIdx.x - row * columns;
    if (row >= rows) column = width;  // this thread has no elements
  }
};

// Copies a layer's kernel (width, side) for the forward pass to (groups, width / 4, parts, units, 4), with four inputs
// side by side; also copies the bias.
template <int kParts>
__device__ __forceinline__ void fetch_forward(float* to, float* biases, const float* kernel, const float* bias,
                                              int width, const Share& share) {
  constexpr int U = kUnits<kParts>;
  const int side = kParts * width, vectors = Shape::up(width, 4);
  for (int column = share.column; column < side; column += share.columns) {
    const int part = column >= width, unit = column - part * width, group = unit / U;
    float* const place = to + (group * vectors * 10 + part * U + unit - group * U) * 4;
    for (int row = share.row; row < width; row += share.rows) {
      __pipeline_memcpy_async(place + row / 4 * 40 + row % 4, kernel + row * side + column, sizeof(float));
    }
    if (share.row == 0) __pipeline_memcpy_async(biases + column, bias + column, sizeof(float));
  }
  __pipeline_commit();
}

// Copies a layer's kernel for the backward pass to (groups, side / 4, units, 4), with four outputs side by side.
template <int kParts>
__device__ __forceinline__ void fetch_backward(float* to, const float* kernel, int width, const Share& share) {
  constexpr int U = kUnits<kParts>;
  const int side = kParts * width, vectors = Shape::up(side, 4);
  const auto place = [&](int row, int column) {
    const int group = row / U;
    return to + ((group * vectors + column / 4) * U + row - group * U) * 4 + column % 4;
  };
  if (side % 4 == 0) {
    for (int vector = share.column; vector < vectors; vector += share.columns) {
      for (int row = share.row; row < width; row += share.rows) {
        __pipeline_memcpy_async(place(row, 4 * vector), kernel + row * side + 4 * vector, sizeof(float4));
      }
    }
  } else {
    for (int column = share.column; column < side; column += share.columns) {
      for (int row = share.row; row < width; row += share.rows) {
        __pipeline_memcpy_async(place(row, column), kernel + row * side + column, sizeof(float));
      }
    }
  }
  __pipeline_commit();
}

// Copies a layer's input (width, rows), which the forward pass kept. A thread copies units `unit`, `unit + step`, ...
__device__ __forceinline__ void fetch_input(float* to, const float* kept, const Shape& shape, int row, int unit,
                                            int step) {
  for (; unit < shape.width; unit += step) {
    __pipeline_memcpy_async(to + unit * shape.pitch() + row, kept + unit * shape.columns() + row, sizeof(float4));
  }
  __pipeline_commit();
}

template <int kParts>
__global__ void __launch_bounds__(kThreads)
    forward(Shape shape, const float* x, const float* kernel, const float* bias, const int32_t* activation, float* y,
            float* kept) {
  constexpr int U = kUnits<kParts>;
  constexpr int kStates = 2 * kParts - 1;
  extern __shared__ float4 shared[];
  const int width = shape.width, side = shape.side(kParts), columns = shape.columns(), pitch = shape.pitch();
  const int kernel_size = shape.forward_kernel(kParts), bias_size = Shape::fours(side);
  float* const kernels = reinterpret_cast<float*>(shared);
  float* const biases = kernels + 2 * kernel_size;
  float* const inputs = biases + 2 * bias_size;
  const int64_t run = blockIdx.x / shape.tiles;
  const int first = blockIdx.x % shape.tiles * shape.rows, groups = shape.rows / kRows;
  const int row = kRows * (threadIdx.x % groups), unit = U * (threadIdx.x / groups);
  const int own_kernel = threadIdx.x / groups * Shape::fours(width) * 10;
  const Share share(side);

  x += run * shape.batch * width;
  y += run * shape.batch * width;
  kernel += run * shape.layers * width * side;
  bias += run * shape.layers * side;
  if (kept) kept += run * (shape.layers + 1) * kStates * width * columns + first + row;
  const bool tanh = activation[run] != 0;

  clear(kernels, shape.forward_memory(kParts));
  __syncthreads();
  fetch_forward<kParts>(kernels, biases, kernel, bias, width, share);
  for (int c = 0; c < U && unit + c < width; ++c) {
    const float4 own = each([&](int r) {
      const int example = first + row + r;
      return example < shape.batch ? x[example * width + unit + c] : 0.0f;
    });
    store(inputs + (unit + c) * pitch + row, own);
    if (kept) store(kept + (unit + c) * columns, own);
  }

  for (int layer = 0; layer < shape.layers; ++layer) {
    const float* const weights = kernels + layer % 2 * kernel_size + own_kernel;
    const float* const input = inputs + layer % 2 * Shape::fours(width) * pitch;
    float* const output = inputs + (layer + 1) % 2 * Shape::fours(width) * pitch;
    __pipeline_wait_prior(0);
    __syncthreads();  // the layer's kernel and input have arrived, and no thread reads the previous ones any more
    if (layer + 1 < shape.layers) {
      const int next = layer + 1, place = next % 2;
      fetch_forward<kParts>(kernels + place * kernel_size, biases + place * bias_size, kernel + next * width * side,
                            bias + next * side, width, share);
    }

    float4 z[kParts][U];
#pragma unroll
    for (int c = 0; c < U; ++c) {
#pragma unroll
      for (int p = 0; p < kParts; ++p) {
        const float start = biases[layer % 2 * bias_size + p * width + min(unit + c, width - 1)];
        z[p][c] = make_float4(start, start, start, start);
      }
    }
#pragma unroll 1
    for (int k = 0; k < width; k += 4) {
      float4 a[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = load(input + (k + i) * pitch + row);
#pragma unroll
      for (int c = 0; c < U; ++c) {
#pragma unroll
        for (int p = 0; p < kParts; ++p) {
          const float4 w = load(weights + k * 10 + (p * U + c) * 4);
#pragma unroll
          for (int i = 0; i < 4; ++i) add(z[p][c], at(w, i), a[i]);
        }
      }
    }

    float* const states = kept + static_cast<int64_t>(layer) * kStates * width * columns;
#pragma unroll
    for (int c = 0; c < U; ++c) {
      if (unit + c >= width) break;
      float4 out = each([&](int r) { return activate(at(z[0][c], r), tanh); });
      if constexpr (kParts == 2) {
        const float4 h = out, t = each([&](int r) { return gate(at(z[1][c], r)); });
        const float4 in = load(input + (unit + c) * pitch + row);
        out = each([&](int r) { return at(h, r) * at(t, r) + at(in, r) * (1.0f - at(t, r)); });
        if (kept) {
          store(states + (width + unit + c) * columns, h);
          store(states + (2 * width + unit + c) * columns, t);
        }
      }
      if (kept) store(states + (kStates * width + unit + c) * columns, out);
      store(output + (unit + c) * pitch + row, out);
      if (layer + 1 == shape.layers) {
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          const int example = first + row + r;
          if (example < shape.batch) y[example * width + unit + c] = at(out, r);
        }
      }
    }
  }
}

template <int kParts>
__global__ void __launch_bounds__(kThreads)
    backward(Shape shape, const float* dy, const float* kernel, const int32_t* activation, const float* kept, float* dx,
             float* dkernel, float* dbias) {
  constexpr int U = kUnits<kParts>;
  constexpr int I = kInputs<kParts>, O = kOutputs<kParts>;
  constexpr int kStates = 2 * kParts - 1;
  extern __shared__ float4 shared[];
  const int width = shape.width, side = shape.side(kParts), columns = shape.columns(), pitch = shape.pitch();
  float* const weights = reinterpret_cast<float*>(shared);
  float* const input = weights + shape.backward_kernel(kParts);
  float* const dz = input + Shape::fours(width) * pitch;
  const int64_t run = blockIdx.x / shape.tiles, tile = blockIdx.x % shape.tiles;
  const int first = tile * shape.rows, groups = shape.rows / kRows;
  const int group = threadIdx.x / groups, all_groups = blockDim.x / groups;
  const int row = kRows * (threadIdx.x - group * groups), unit = U * group;
  const float* const own_weights = weights + group * Shape::fours(side) * U;
  const Share share(side % 4 == 0 ? side / 4 : side);
  const int64_t layer_size = static_cast<int64_t>(kStates) * width * columns;

  dy += run * shape.batch * width;
  dx += run * shape.batch * width;
  kernel += run * shape.layers * width * side;
  dkernel += (run * shape.tiles + tile) * shape.layers * width * side;
  dbias += (run * shape.tiles + tile) * shape.layers * side;
  kept += run * (shape.layers + 1) * layer_size + first;
  const bool tanh = activation[run] != 0;

  clear(weights, shape.backward_memory(kParts));
  __syncthreads();
  fetch_input(input, kept + (shape.layers - 1) * layer_size, shape, row, group, all_groups);
  fetch_backward<kParts>(weights, kernel + (shape.layers - 1) * width * side, width, share);

  // The gradient of the layer's output, and the states that the cell's derivative depends on. The states of the layer
  // below are loaded during a product.
  float4 g[U], h[U], t[U];
  const auto fetch_states = [&](int layer) {
    const float* const states = kept + layer * layer_size + row;
#pragma unroll
    for (int c = 0; c < U; ++c) {
      const int own = min(unit + c, width - 1);
      h[c] = load(states + (kParts == 2 ? width + own : kStates * width + own) * columns);
      if constexpr (kParts == 2) t[c] = load(states + (2 * width + own) * columns);
    }
  };
#pragma unroll
  for (int c = 0; c < U; ++c) {
    g[c] = each([&](int r) {
      const int example = first + row + r;
      return example < shape.batch && unit + c < width ? dy[example * width + unit + c] : 0.0f;
    });
  }
  fetch_states(shape.layers - 1);

  for (int layer = shape.layers - 1; layer >= 0; --layer) {
    __pipeline_wait_prior(1);
    __syncthreads();  // the layer's input has arrived, and no thread reads the previous dz any more
#pragma unroll
    for (int c = 0; c < U; ++c) {
      if (unit + c >= width) break;
      float* const own = dz + (unit + c) * pitch + row;
      // Padding examples have a gradient of zero, even if their state is not finite.
      const auto real = [&](int r, float value) { return first + row + r < shape.batch ? value : 0.0f; };
      if constexpr (kParts == 2) {
        const float4 in = load(input + (unit + c) * pitch + row);
        store(own, each([&](int r) { return real(r, at(g[c], r) * at(t[c], r) * slope(at(h[c], r), tanh)); }));
        store(own + width * pitch, each([&](int r) {
                return real(r, at(g[c], r) * (at(h[c], r) - at(in, r)) * at(t[c], r) * (1.0f - at(t[c], r)));
              }));
        g[c] = each([&](int r) { return real(r, at(g[c], r) * (1.0f - at(t[c], r))); });
      } else {
        store(own, each([&](int r) { return real(r, at(g[c], r) * slope(at(h[c], r), tanh)); }));
        g[c] = {0.0f, 0.0f, 0.0f, 0.0f};
      }
    }
    __syncthreads();  // dz is complete
    if (layer > 0) fetch_states(layer - 1);

    // The gradient of the biases: dz summed over examples.
    for (int column = threadIdx.x; column < side; column += blockDim.x) {
      float4 sum = {};
#pragma unroll 4
      for (int k = 0; k < shape.rows; k += 4) add(sum, 1.0f, load(dz + column * pitch + k));
      dbias[layer * side + column] = (sum.x + sum.y) + (sum.z + sum.w);
    }

    // The gradient of the kernel: input^T dz, summed over examples.
    const int high = Shape::up(width, I), wide = Shape::up(side, O);
    for (int item = threadIdx.x; item < high * wide; item += blockDim.x) {
      const int i = item / wide, j = item - i * wide;
      float sum[I][O] = {};
      const float *a[I], *b[O];
#pragma unroll
      for (int m = 0; m < I; ++m) a[m] = input + min(i + m * high, width - 1) * pitch;
#pragma unroll
      for (int n = 0; n < O; ++n) b[n] = dz + min(j + n * wide, side - 1) * pitch;
#pragma unroll 2
      for (int k = 0; k < shape.rows; k += 4) {
        float4 left[I];
#pragma unroll
        for (int m = 0; m < I; ++m) left[m] = load(a[m] + k);
#pragma unroll
        for (int n = 0; n < O; ++n) {
          const float4 right = load(b[n] + k);
#pragma unroll
          for (int m = 0; m < I; ++m) {
#pragma unroll
            for (int r = 0; r < 4; ++r) sum[m][n] = fmaf(at(left[m], r), at(right, r), sum[m][n]);
          }
        }
      }
      float* const to = dkernel + layer * width * side;
#pragma unroll
      for (int n = 0; n < O; ++n) {
        const int column = j + n * wide;
#pragma unroll
        for (int m = 0; m < I; ++m) {
          if (column < side && i + m * high < width) to[(i + m * high) * side + column] = sum[m][n];
        }
      }
    }

    __pipeline_wait_prior(0);
    __syncthreads();  // the layer's kernel has arrived, and no thread reads its input any more
    if (layer > 0) fetch_input(input, kept + (layer - 1) * layer_size, shape, row, group, all_groups);

    // The gradient of the input through the affine maps: dz kernel^T.
#pragma unroll 1
    for (int k = 0; k < side; k += 4) {
      float4 a[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = load(dz + (k + i) * pitch + row);
#pragma unroll
      for (int c = 0; c < U; ++c) {
        const float4 w = load(own_weights + k * U + c * 4);
#pragma unroll
        for (int i = 0; i < 4; ++i) add(g[c], at(w, i), a[i]);
      }
    }
    __syncthreads();  // no thread reads the kernel any more
    if (layer > 0) {
      fetch_backward<kParts>(weights, kernel + (layer - 1) * width * side, width, share);
    }
  }

#pragma unroll
  for (int c = 0; c < U; ++c) {
    if (unit + c >= width) break;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int example = first + row + r;
      if (example < shape.batch) dx[example * width + unit + c] = at(g[c], r);
    }
  }
}

int64_t runs_of(const ffi::AnyBuffer::Dimensions& dimensions, int own) {
  int64_t runs = 1;
  for (size_t i = 0; i + own < dimensions.size(); ++i) runs *= dimensions[i];
  return runs;
}

// The shape of a call. The number of affine maps follows from the kernel's shape.
Shape shape_of(const ffi::AnyBuffer::Dimensions& x, const ffi::AnyBuffer::Dimensions& kernel, int64_t rows) {
  const auto last = [](const auto& dimensions, int from_end) {
    return static_cast<int>(dimensions[dimensions.size() - from_end]);
  };
  const int batch = last(x, 2), own_rows = static_cast<int>(rows);
  return {last(kernel, 3), last(kernel, 2), batch, own_rows, (batch + own_rows - 1) / own_rows};
}

template <typename... Parameters, typename... Arguments>
ffi::Error launch(void (*kernel)(Shape, Parameters...), const Shape& shape, int parts, int64_t runs, int floats,
                  cudaStream_t stream, Arguments... arguments) {
  const int units = 10 / parts, threads = shape.rows / kRows * ((shape.width + units - 1) / units);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(runs * shape.tiles);
  config.blockDim = dim3(threads);
  const int bytes = floats * static_cast<int>(sizeof(float));
  config.dynamicSmemBytes = bytes;
  config.stream = stream;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error == cudaSuccess) error = cudaLaunchKernelEx(&config, kernel, shape, static_cast<Parameters>(arguments)...);
  return error == cudaSuccess ? ffi::Error::Success() : ffi::Error::Internal(cudaGetErrorString(error));
}

using Floats = ffi::Buffer<ffi::F32>;
using Ints = ffi::Buffer<ffi::S32>;
using Result = ffi::Result<Floats>;

ffi::Error Forward(cudaStream_t stream, int64_t rows, Floats x, Floats kernel, Floats bias, Ints activation, Result y,
                   Result kept) {
  const Shape shape = shape_of(x.dimensions(), kernel.dimensions(), rows);
  const int parts = static_cast<int>(kernel.dimensions().back()) / shape.width;
  return launch(parts == 2 ? forward<2> : forward<1>, shape, parts, runs_of(x.dimensions(), 2),
                shape.forward_memory(parts), stream, x.typed_data(), kernel.typed_data(), bias.typed_data(),
                activation.typed_data(), y->typed_data(), kept->element_count() ? kept->typed_data() : nullptr);
}

ffi::Error Backward(cudaStream_t stream, int64_t rows, Floats dy, Floats kernel, Ints activation, Floats kept,
                    Result dx, Result dkernel, Result dbias) {
  const Shape shape = shape_of(dy.dimensions(), kernel.dimensions(), rows);
  const int parts = static_cast<int>(kernel.dimensions().back()) / shape.width;
  return launch(parts == 2 ? backward<2> : backward<1>, shape, parts, runs_of(dy.dimensions(), 2),
                shape.backward_memory(parts), stream, dy.typed_data(), kernel.typed_data(), activation.typed_data(),
                kept.typed_data(), dx->typed_data(), dkernel->typed_data(), dbias->typed_data());
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(highway_forward, Forward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::PlatformStream<cudaStream_t>>()
                                  .Attr<int64_t>("rows")
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Ints>()
                                  .Ret<Floats>()
                                  .Ret<Floats>(),
                              {ffi::Traits::kCmdBufferCompatible});

XLA_FFI_DEFINE_HANDLER_SYMBOL(highway_backward, Backward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::PlatformStream<cudaStream_t>>()
                                  .Attr<int64_t>("rows")
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Ints>()
                                  .Arg<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>(),
                              {ffi::Traits::kCmdBufferCompatible});
