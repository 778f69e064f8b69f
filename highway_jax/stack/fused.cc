// Stacks of highway and plain layers on a CPU, forward and backward, for highway_jax/stack/fused.py.
//
// Internally, an array of a layer is (width, columns), with an example in each column. The number of columns is rounded
// up to whole vectors, so that every product and every elementwise loop runs along examples, whatever the width.
// Padding columns start as zeros and are never read in the end. At the paper's sizes, a layer stays in the first two
// levels of cache: its elementwise operations directly follow its product, and the gradient of the weights is computed
// while dz is still in the cache. The arrays of a dense layer are as in XLA, with an example in each row.

#include <iterator>
#include <utility>

#include "elementwise.h"
#include "vectors.h"
#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;

constexpr int kMaxVectors = kRegisters == 32 ? 4 : 2;

// A tile has `rows` x `vectors` accumulators, which leaves registers for the vectors of a row and a factor.
constexpr int tile_rows(int vectors) { return std::min(12, (kRegisters == 32 ? 24 : 8) / vectors); }

// Calls work(vectors, first) for blocks of one to four vectors that cover `size` floats; `vectors` is a constant.
template <typename Work>
INLINE void in_vectors(int64_t size, Work work) {
  int64_t at = 0;
  for (; at + kMaxVectors * kLanes <= size; at += kMaxVectors * kLanes)
    work(std::integral_constant<int, kMaxVectors>{}, at);
  const int64_t rest = (size - at) / kLanes;
  if (rest == 1) work(std::integral_constant<int, 1>{}, at);
  if constexpr (kMaxVectors > 2) {
    if (rest == 2) work(std::integral_constant<int, 2>{}, at);
    if (rest == 3) work(std::integral_constant<int, 3>{}, at);
  }
}

// Calls work(rows, first) for blocks of `kRows`, two or one rows that cover `count` rows; `rows` is a constant.
template <int kRows, typename Work>
INLINE void in_rows(int64_t count, Work work) {
  int64_t at = 0;
  for (; at + kRows <= count; at += kRows) work(std::integral_constant<int, kRows>{}, at);
  if constexpr (kRows > 2)
    for (; at + 2 <= count; at += 2) work(std::integral_constant<int, 2>{}, at);
  for (; at < count; at++) work(std::integral_constant<int, 1>{}, at);
}

// Calls work(sums, row, column) for tiles that cover `rows` rows and the whole vectors of `columns` columns. The sums
// start at zero.
template <typename Work>
INLINE void in_tiles(int64_t rows, int64_t columns, Work work) {
  in_vectors(columns, [&](auto vectors, int64_t column) ALWAYS {
    constexpr int kVectors = vectors;
    in_rows<tile_rows(kVectors)>(rows, [&](auto block, int64_t row) ALWAYS {
      Vector sums[block][kVectors] = {};
      work(sums, row, column);
    });
  });
}

// sums[row] += the sum over k < count of factor(row, k) * lines[k * stride ...].
template <int kRows, int kVectors, typename Factor>
INLINE void multiply(Vector (&sums)[kRows][kVectors], Factor factor, const float* lines, int64_t stride,
                     int64_t count) {
  for (int64_t k = 0; k < count; k++) {
    Vector line[kVectors];
    for (int v = 0; v < kVectors; v++) line[v] = load(lines + k * stride + v * kLanes);
    for (int row = 0; row < kRows; row++) {
      const Vector one = fill(factor(row, k));
      for (int v = 0; v < kVectors; v++) sums[row][v] += one * line[v];
    }
  }
}

template <int kRows, int kVectors>
INLINE void store_tile(const Vector (&sums)[kRows][kVectors], float* to, int64_t stride) {
  for (int row = 0; row < kRows; row++)
    for (int v = 0; v < kVectors; v++) store(to + row * stride + v * kLanes, sums[row][v]);
}

// Exchanges the off-diagonal blocks of `kStep` lanes between two rows, for a recursive transposition.
template <int kStep, size_t... kLane>
INLINE void exchange(Vector& a, Vector& b, std::index_sequence<kLane...>) {
#if defined(__clang__)
#define SHUFFLE(...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(...) __builtin_shuffle(a, b, Ints{__VA_ARGS__})
#endif
  const Vector first = SHUFFLE((int(kLane) & kStep ? kLanes + int(kLane) - kStep : int(kLane))...);
  const Vector second = SHUFFLE((int(kLane) & kStep ? kLanes + int(kLane) : int(kLane) + kStep)...);
#undef SHUFFLE
  a = first;
  b = second;
}

template <int kStep>
INLINE void transpose_lanes(Vector (&rows)[kLanes]) {
  for (int i = 0; i < kLanes; i++)
    if (!(i & kStep)) exchange<kStep>(rows[i], rows[i + kStep], std::make_index_sequence<kLanes>{});
  if constexpr (kStep > 1) transpose_lanes<kStep / 2>(rows);
}

// to[j * to_row + i] = from[i * from_row + j].
void transpose(const float* from, int64_t rows, int64_t columns, int64_t from_row, float* to, int64_t to_row) {
  const int64_t whole_rows = rows / kLanes * kLanes, whole_columns = columns / kLanes * kLanes;
  for (int64_t i = 0; i < whole_rows; i += kLanes)
    for (int64_t j = 0; j < whole_columns; j += kLanes) {
      Vector block[kLanes];
      for (int k = 0; k < kLanes; k++) block[k] = load(from + (i + k) * from_row + j);
      transpose_lanes<kLanes / 2>(block);
      for (int k = 0; k < kLanes; k++) store(to + (j + k) * to_row + i, block[k]);
    }
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = i < whole_rows ? whole_columns : 0; j < columns; j++) to[j * to_row + i] = from[i * from_row + j];
}

template <int kStep = kLanes / 2>
INLINE float sum_of_lanes(Vector a) {
  Vector b = a;
  exchange<kStep>(a, b, std::make_index_sequence<kLanes>{});
  if constexpr (kStep > 1) return sum_of_lanes<kStep / 2>(a + b);
  return (a + b)[0];
}

// Copies the columns of a product beyond its whole vectors to an array in which they are padded to a vector, or back.
// It copies whole vectors where it can, which overwrite what follows each destination. This is correct because rows
// are copied in order.
void copy_columns(int64_t rows, int64_t count, const float* from, int64_t from_row, float* to, int64_t to_row) {
  for (int64_t row = 0; row < rows; row++, from += from_row, to += to_row) {
    if (row + kLanes < rows)
      store(to, load(from));
    else  // either array may end before a whole vector does
      std::memcpy(to, from, count * sizeof(float));
  }
}

// to (rows, columns) = the sum over k < count of factor(row, k) * lines (count, columns). With `rest`, this includes
// the columns beyond whole vectors. `scratch` has room for rows + count vectors.
template <typename Factor>
void product(int64_t rows, int64_t columns, int64_t count, Factor factor, const float* lines, float* to, bool rest,
             float* scratch) {
  const auto tiles = [&](const float* lines, int64_t columns, float* to) {
    in_tiles(rows, columns, [&](auto& sums, int64_t row, int64_t column) ALWAYS {
      multiply(sums, [&](int i, int64_t k) ALWAYS { return factor(row + i, k); }, lines + column, columns, count);
      store_tile(sums, to + row * columns + column, columns);
    });
  };
  const int64_t whole = columns / kLanes * kLanes;
  if (rest && whole < columns) {
    float* sums = scratch + count * kLanes;
    copy_columns(count, columns - whole, lines + whole, columns, scratch, kLanes);
    tiles(scratch, kLanes, sums);
    copy_columns(rows, columns - whole, sums, kLanes, to + whole, columns);
  }
  tiles(lines, columns, to);
}

// to[row * to_row + column] = the scalar product of row `row` of x and row `column` of y, both of `count` columns.
void dot_products(int64_t rows, int64_t columns, int64_t count, const float* x, const float* y, float* to,
                  int64_t to_row) {
  const int64_t whole = count / kLanes * kLanes;
  in_rows<2>(columns, [&](auto wide, int64_t column) ALWAYS {
    in_rows<4>(rows, [&](auto high, int64_t row) ALWAYS {
      constexpr int kRows = high, kColumns = wide;
      Vector sums[kRows][kColumns] = {};
      for (int64_t k = 0; k < whole; k += kLanes)
        for (int i = 0; i < kRows; i++) {
          const Vector line = load(x + (row + i) * count + k);
          for (int j = 0; j < kColumns; j++) sums[i][j] += line * load(y + (column + j) * count + k);
        }
      for (int i = 0; i < kRows; i++)
        for (int j = 0; j < kColumns; j++) {
          float sum = sum_of_lanes(sums[i][j]);
          for (int64_t k = whole; k < count; k++) sum += x[(row + i) * count + k] * y[(column + j) * count + k];
          to[(row + i) * to_row + column + j] = sum;
        }
    });
  });
}

struct Shape {
  int64_t layers, width, batch, columns, parts;  // parts: the number of affine maps of a layer, for H and maybe T
  int64_t side() const { return parts * width; }
  int64_t state() const { return width * columns; }
  int64_t record() const { return (2 * parts - 1) * state(); }  // kept for each layer: x, and with gates h and t
};

// Computes one layer (Eq. 1 and 3). `kept` is the layer's record, and `next` receives the block output.
template <int kParts>
void layer_forward(const Shape s, const float* kernel, const float* bias, float* kept, float* next, float* scratch, int32_t index) {
  const float* x = kept;
  float *h = kept + s.state(), *t = h + s.state();
  float* z = kParts == 2 ? h : next;  // (side, columns)
  const int64_t rest = s.batch % kLanes;
  const int64_t columns = s.columns - (rest && rest <= kLanes / 4 && s.side() >= kLanes ? kLanes : 0);
  if (columns < s.columns) {  // vectors along units waste fewer lanes for the few last examples
    const auto along_units = [&](int64_t first, int64_t units) {
      in_tiles(rest, units, [&](auto& sums, int64_t example, int64_t unit) ALWAYS {
        for (auto& line : sums)
          for (int v = 0; v < int(std::size(line)); v++) line[v] = load(bias + first + unit + v * kLanes);
        const auto factor = [&](int row, int64_t k) ALWAYS { return x[k * s.columns + columns + example + row]; };
        multiply(sums, factor, kernel + first + unit, s.side(), s.width);
        store_tile(sums, scratch + example * s.side() + first + unit, s.side());
      });
    };
    along_units(0, s.side());
    if (s.side() % kLanes) along_units(s.side() - kLanes, kLanes);
    transpose(scratch, kLanes, s.side(), s.side(), z + columns, s.columns);
  }
  in_tiles(s.side(), columns, [&](auto& sums, int64_t unit, int64_t column) ALWAYS {
    for (int row = 0; row < int(std::size(sums)); row++)
      for (auto& sum : sums[row]) sum = fill(bias[unit + row]);
    const auto factor = [&](int row, int64_t k) ALWAYS { return kernel[k * s.side() + unit + row]; };
    multiply(sums, factor, x + column, s.columns, s.width);
    store_tile(sums, z + unit * s.columns + column, s.columns);
  });
  for (int64_t at = 0; at < s.state(); at += kLanes) {
    Vector y = activation(load(z + at), index);
    if constexpr (kParts == 2) {
      const Vector before = load(x + at), gate = sigmoid(load(t + at));
      store(h + at, y);
      store(t + at, gate);
      y = y * gate + before * (1.0f - gate);
    }
    store(next + at, y);
  }
}

struct Scratch {
  float *dz, *dz_by_example;  // (side, columns) and (columns, side), with sizes rounded up to whole vectors
};

// Computes the gradients of one layer (Eq. 9 and the chain rule). `next` is the record of the layer above.
template <int kParts>
void layer_backward(const Shape s, const float* kernel, const float* kept, const float* next, const float* dy,
                    const Scratch& scratch, float* dx, float* dkernel, float* dbias, int32_t index) {
  const float *x = kept, *h = kParts == 2 ? kept + s.state() : next, *t = h + s.state();
  float* dz = scratch.dz;
  for (int64_t at = 0; at < s.state(); at += kLanes) {
    const Vector h_at = load(h + at), dy_at = load(dy + at);
    if constexpr (kParts == 2) {
      const Vector t_at = load(t + at), dh = dy_at * t_at;
      store(dz + at, dh * derivative(h_at, index));
      store(dz + s.state() + at, dh * (1.0f - t_at) * (h_at - load(x + at)));
    } else {
      store(dz + at, dy_at * derivative(h_at, index));
    }
  }
  in_tiles(s.width, s.columns, [&](auto& sums, int64_t unit, int64_t column) ALWAYS {
    if constexpr (kParts == 2)
      for (int row = 0; row < int(std::size(sums)); row++)
        for (int v = 0; v < int(std::size(sums[row])); v++) {
          const int64_t at = (unit + row) * s.columns + column + v * kLanes;
          sums[row][v] = (1.0f - load(t + at)) * load(dy + at);
        }
    const auto factor = [&](int row, int64_t k) ALWAYS { return kernel[(unit + row) * s.side() + k]; };
    multiply(sums, factor, dz + column, s.columns, s.side());
    store_tile(sums, dx + unit * s.columns + column, s.columns);
  });
  const int64_t side = whole_vectors(s.side());
  float* lines = scratch.dz_by_example;
  transpose(dz, side, s.columns, s.columns, lines, side);
  in_tiles(s.width, side, [&](auto& sums, int64_t unit, int64_t column) ALWAYS {
    const auto factor = [&](int row, int64_t k) ALWAYS { return x[(unit + row) * s.columns + k]; };
    multiply(sums, factor, lines + column, side, s.batch);
    for (int row = 0; row < int(std::size(sums)); row++)
      for (int v = 0; v < int(std::size(sums[row])); v++) {
        const int64_t at = column + v * kLanes;
        store_some(dkernel + (unit + row) * s.side() + at, sums[row][v], s.side() - at);
      }
  });
  in_vectors(side, [&](auto vectors, int64_t column) ALWAYS {
    constexpr int kVectors = vectors;
    Vector sums[kVectors] = {};
    for (int64_t example = 0; example < s.batch; example++)
      for (int v = 0; v < kVectors; v++) sums[v] += load(lines + example * side + column + v * kLanes);
    for (int v = 0; v < kVectors; v++) {
      const int64_t at = column + v * kLanes;
      store_some(dbias + at, sums[v], s.side() - at);
    }
  });
}

using Array = ffi::Buffer<ffi::F32>;
using Index = ffi::Buffer<ffi::S32>;
using Result = ffi::Result<Array>;

// The shape of a stack with x (batch, width) and kernel (layers, width, side).
Shape shape_of(const Array& x, const Array& kernel, int64_t columns) {
  const auto outer = x.dimensions(), inner = kernel.dimensions();
  return {inner[0], outer[1], outer[0], columns, inner[2] / outer[1]};
}

// Transposes (batch, width) to (width, columns), with zeros in padding columns.
void enter(const Shape& s, const float* from, float* to) {
  if (s.columns > s.batch) std::memset(to, 0, s.state() * sizeof(float));
  transpose(from, s.batch, s.width, s.width, to, s.columns);
}

ffi::Error forward(Array x, Array kernel, Array bias, Index activation, Result y, Result records) {
  const Shape s = shape_of(x, kernel, records->dimensions().back());
  float* kept = records->typed_data();
  const auto scratch = room(kLanes * s.side());
  if (!scratch) return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no memory for the forward pass");
  std::memset(scratch.get(), 0, kLanes * s.side() * sizeof(float));  // for padding rows
  enter(s, x.typed_data(), kept);
  for (int64_t layer = 0; layer < s.layers; layer++, kept += s.record())
    (s.parts == 2 ? layer_forward<2> : layer_forward<1>)(s, kernel.typed_data() + layer * s.width * s.side(),
                                                         bias.typed_data() + layer * s.side(), kept, kept + s.record(),
                                                         scratch.get(), *activation.typed_data());
  transpose(kept, s.width, s.batch, s.columns, y->typed_data(), s.width);
  return ffi::Error::Success();
}

ffi::Error backward(Array dy, Array kernel, Index activation, Array records, Result dx, Result dkernel, Result dbias) {
  const Shape s = shape_of(dy, kernel, records.dimensions().back());
  const int64_t lines = whole_vectors(s.side()) * s.columns;
  const auto memory = room(2 * lines + 2 * s.state());
  if (!memory) return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no memory for the backward pass");
  const Scratch scratch = {memory.get(), memory.get() + lines};
  std::memset(scratch.dz + s.parts * s.state(), 0, (lines - s.parts * s.state()) * sizeof(float));  // padding rows
  float *above = memory.get() + 2 * lines, *below = above + s.state();
  enter(s, dy.typed_data(), above);
  for (int64_t layer = s.layers; layer--; std::swap(above, below)) {
    const float* kept = records.typed_data() + layer * s.record();
    (s.parts == 2 ? layer_backward<2> : layer_backward<1>)(
        s, kernel.typed_data() + layer * s.width * s.side(), kept, kept + s.record(), above, scratch, below,
        dkernel->typed_data() + layer * s.width * s.side(), dbias->typed_data() + layer * s.side(),
        *activation.typed_data());
  }
  transpose(above, s.width, s.batch, s.columns, dx->typed_data(), s.width);
  return ffi::Error::Success();
}

// y (batch, outputs) = x (batch, inputs) @ kernel (inputs, outputs).
ffi::Error multiplied(Array x, Array kernel, Result y) {
  const int64_t batch = x.dimensions()[0], inputs = x.dimensions()[1], outputs = kernel.dimensions()[1];
  const float *from = x.typed_data(), *weights = kernel.typed_data();
  const int64_t whole = outputs / kLanes * kLanes, rest = outputs - whole;
  const auto memory = room(std::max((batch + inputs) * kLanes, rest * inputs));
  if (!memory) return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no memory for a product");
  // The last few outputs may instead be dot products along the inputs, each of which ends in a sum of lanes.
  const bool few = rest * (inputs + 10 * kLanes) < kLanes * inputs;
  const auto factor = [&](int64_t row, int64_t k) ALWAYS { return from[row * inputs + k]; };
  product(batch, outputs, inputs, factor, weights, y->typed_data(), !few, memory.get());
  if (few) {
    transpose(weights + whole, inputs, rest, outputs, memory.get(), inputs);
    dot_products(batch, rest, inputs, from, memory.get(), y->typed_data() + whole, outputs);
  }
  return ffi::Error::Success();
}

// The cotangent of the kernel: dkernel = x^T @ dy.
ffi::Error gradient(Array x, Array dy, Result dkernel) {
  const int64_t batch = x.dimensions()[0], inputs = x.dimensions()[1], outputs = dy.dimensions()[1];
  const float *from = x.typed_data(), *dz = dy.typed_data();
  const int64_t whole = outputs / kLanes * kLanes, rest = outputs - whole;
  const auto memory = room(std::max((batch + inputs) * kLanes, rest * inputs));
  if (!memory) return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no memory for a gradient");
  const bool along_inputs = inputs % kLanes == 0;  // the last few outputs, in whole vectors of inputs
  const auto factor = [&](int64_t row, int64_t k) ALWAYS { return from[k * inputs + row]; };
  product(inputs, outputs, batch, factor, dz, dkernel->typed_data(), !along_inputs, memory.get());
  if (along_inputs) {
    const auto transposed = [&](int64_t row, int64_t k) ALWAYS { return dz[k * outputs + whole + row]; };
    product(rest, inputs, batch, transposed, from, memory.get(), false, nullptr);
    transpose(memory.get(), rest, inputs, inputs, dkernel->typed_data() + whole, outputs);
  }
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(highway_forward, forward,
                              ffi::Ffi::Bind().Arg<Array>().Arg<Array>().Arg<Array>().Arg<Index>()
                                  .Ret<Array>().Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(highway_backward, backward,
                              ffi::Ffi::Bind().Arg<Array>().Arg<Array>().Arg<Index>().Arg<Array>()
                                  .Ret<Array>().Ret<Array>().Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(highway_product, multiplied, ffi::Ffi::Bind().Arg<Array>().Arg<Array>().Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(highway_gradient, gradient, ffi::Ffi::Bind().Arg<Array>().Arg<Array>().Ret<Array>());
