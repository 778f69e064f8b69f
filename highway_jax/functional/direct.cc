// Convolutions of images with channels last and convolutional highway layers, forward and backward, on a CPU, for
// highway_jax/functional/direct.py.
//
// This is a direct convolution. With channels last, a row of a window (all of its columns and channels) is contiguous.
// A convolution is therefore a matrix product with the rows of the kernel that reads the images in place. A tile of
// pixels and vectors of features stays in registers for the whole sum. Images are copied only to pad them with zeros,
// and only a few at a time, so that the copies stay in the caches.

#include <atomic>
#include <initializer_list>
#include <thread>

#include "elementwise.h"
#include "vectors.h"
#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;

// A tile has `rows` x `vectors` accumulators, which leaves registers for the factor of a row and the vectors that it
// multiplies.
constexpr int kMaxVectors = kRegisters == 32 ? 5 : 3;
constexpr int tile_rows(int vectors) {
  constexpr int wide[] = {14, 12, 9, 6, 5}, narrow[] = {12, 6, 4};
  return kRegisters == 32 ? wide[vectors - 1] : narrow[vectors - 1];
}
constexpr int kMaxTile = 30;  // accumulators

// Calls work(first, size) for about equal parts of `count`, each of at most `most`.
template <typename Work>
INLINE void in_parts(int64_t count, int64_t most, Work work) {
  const int64_t parts = (count + most - 1) / most;
  for (int64_t i = 0, at = 0, size; i < parts; i++, at += size) {
    size = (count - at + parts - i - 1) / (parts - i);
    work(at, size);
  }
}

// Calls work(number) with `number`, which is from 1 to `kMost`, as a constant.
template <int kMost, typename Work>
INLINE void with_static(int64_t number, Work work) {
  if constexpr (kMost > 1)
    if (number < kMost) return with_static<kMost - 1>(number, work);
  work(std::integral_constant<int, kMost>{});
}

struct Shape {
  int64_t batch, in_height, in_width, channels, height, width, features;
  int64_t rows, columns;                           // of the window
  int64_t down, right;                             // strides
  int64_t dilation_down, dilation_right;           // distances between the pixels of an image
  int64_t top, left, padded_height, padded_width;  // of an image with its zeros
  int64_t run() const { return columns * channels; }
  int64_t taps() const { return rows * run(); }
  int64_t padded_row() const { return padded_width * channels; }
  int64_t padded_size() const { return padded_height * padded_row(); }
  int64_t in_size() const { return in_height * in_width * channels; }
  int64_t out_size() const { return pixels() * features; }
  int64_t pixels() const { return height * width; }
  int64_t vectors() const { return whole_vectors(features) / kLanes; }
  int64_t kernel_size() const { return taps() * features; }
  int64_t packed_size() const { return taps() * vectors() * kLanes; }
  bool is_padded() const { return padded_size() != in_size(); }
};

// Copies an image into an array with zeros around it and between its pixels.
void pad(const Shape& s, const float* image, float* padded) {
  for (int64_t row = 0; row < s.in_height; row++, image += s.in_width * s.channels) {
    float* to = padded + (s.top + row * s.dilation_down) * s.padded_row() + s.left * s.channels;
    if (s.dilation_right == 1)
      std::memcpy(to, image, s.in_width * s.channels * sizeof(float));
    else
      for (int64_t column = 0; column < s.in_width; column++)
        std::memcpy(to + column * s.dilation_right * s.channels, image + column * s.channels,
                    s.channels * sizeof(float));
  }
}

// A packed kernel consists of blocks of a few vectors of features, (block, taps, parts, vectors), with zeros beyond the
// last feature. Its parts are kernels side by side: one kernel, or those of a layer's H and T.

// Calls work(first, lanes, at) for each block, with its first feature, the features it has room for, and its offset.
template <typename Work>
INLINE void in_blocks(const Shape& s, int64_t parts, Work work) {
  in_parts(s.vectors(), kMaxVectors / parts, [&](int64_t first, int64_t vectors) ALWAYS {
    work(first * kLanes, vectors * kLanes, first * kLanes * s.taps() * parts);
  });
}

// Packs kernels (rows, columns, channels, features).
void pack(const Shape& s, std::initializer_list<const float*> kernels, float* packed) {
  in_blocks(s, kernels.size(), [&](int64_t first, int64_t lanes, int64_t at) {
    const int64_t count = std::min(lanes, s.features - first);
    for (int64_t tap = 0; tap < s.taps(); tap++)
      for (const float* kernel : kernels) {
        std::memcpy(packed + at, kernel + tap * s.features + first, count * sizeof(float));
        at += lanes;
      }
  });
}

// Packs the transpose of a kernel (rows, columns, features, channels) into `channels` channels of the packed kernel,
// the first of which is `offset`.
void pack_flipped(const Shape& s, const float* kernel, int64_t offset, int64_t channels, float* packed) {
  in_blocks(s, 1, [&](int64_t first, int64_t lanes, int64_t at) {
    const int64_t count = std::min(lanes, s.features - first), windows = s.rows * s.columns;
    for (int64_t window = 0; window < windows; window++) {
      float* block = packed + at + ((windows - 1 - window) * s.channels + offset) * lanes;
      const float* from = kernel + (window * s.features + first) * channels;
      for (int64_t feature = 0; feature < count; feature++)
        for (int64_t channel = 0; channel < channels; channel++)
          block[channel * lanes + feature] = from[feature * channels + channel];
    }
  });
}

// Unpacks `features` features of a packed kernel, the first of which is `offset`, to a kernel (rows, columns, channels,
// features).
void unpack(const Shape& s, const float* packed, int64_t offset, int64_t features, float* kernel) {
  in_blocks(s, 1, [&](int64_t first, int64_t lanes, int64_t at) {
    const int64_t begin = std::max(first, offset), end = std::min(first + lanes, offset + features);
    for (int64_t tap = 0; tap < s.taps() && begin < end; tap++)
      std::memcpy(kernel + tap * features + begin - offset, packed + at + tap * lanes + begin - first,
                  (end - begin) * sizeof(float));
  });
}

// The destination of a tile: the distance between its pixels, and the number of floats with room for each.
struct Place {
  float* first;
  int64_t pixel, room;
};

// Convolves a padded image with a block, for `pixels` pixels, the first of which is `pixel`.
void convolve_tile(const Shape& s, const float* image, int64_t pixel, int64_t pixels, const float* block,
                   int64_t vectors, const Place& to) {
  with_static<kMaxVectors>(vectors, [&](auto wide) ALWAYS {
    constexpr int kVectors = wide;
    with_static<tile_rows(kVectors)>(pixels, [&](auto high) ALWAYS {
      constexpr int kPixels = high;
      const float* windows[kPixels];
      for (int64_t p = 0, row = pixel / s.width, column = pixel % s.width; p < kPixels; p++) {
        windows[p] = image + row * s.down * s.padded_row() + column * s.right * s.channels;
        if (++column == s.width) column = 0, row++;
      }
      Vector tile[kPixels][kVectors] = {};
      const int64_t run = s.run(), next_row = s.padded_row();
      for (int64_t row = 0; row < s.rows; row++) {
        const auto add = [&](auto steps, int64_t k) ALWAYS {
          Vector lines[steps][kVectors];
          for (int i = 0; i < steps; i++)
            for (int v = 0; v < kVectors; v++) lines[i][v] = load(block + (i * kVectors + v) * kLanes);
          block += steps * kVectors * kLanes;
          for (int p = 0; p < kPixels; p++)
            for (int i = 0; i < steps; i++) {
              const Vector one = fill(windows[p][k + i]);
              for (int v = 0; v < kVectors; v++) tile[p][v] += one * lines[i][v];
            }
        };
        // Several steps at once if there are few products for each pointer to a window, for which registers are scarce.
        constexpr int kSteps = kVectors <= 2 ? (kRegisters == 32 ? 4 : 2) / kVectors : 1;
        int64_t k = 0;
        for (; k + kSteps <= run; k += kSteps) add(std::integral_constant<int, kSteps>{}, k);
        if constexpr (kSteps > 1)
          for (; k < run; k++) add(std::integral_constant<int, 1>{}, k);
        for (int p = 0; p < kPixels; p++) windows[p] += next_row;
      }
      for (int p = 0; p < kPixels; p++)
        for (int v = 0; v < kVectors; v++)
          store_some(to.first + p * to.pixel + v * kLanes, tile[p][v], to.room - v * kLanes);
    });
  });
}

// Calls work(first, lanes, at, pixel, pixels) for each tile of an image's convolution with a packed kernel.
template <typename Work>
INLINE void in_tiles(const Shape& s, int64_t parts, Work work) {
  in_blocks(s, parts, [&](int64_t first, int64_t lanes, int64_t at) ALWAYS {
    in_parts(s.pixels(), tile_rows(parts * lanes / kLanes),
             [&](int64_t pixel, int64_t pixels) ALWAYS { work(first, lanes, at, pixel, pixels); });
  });
}

// y = the convolution of a padded image with a packed kernel.
void convolve(const Shape& s, const float* image, const float* packed, float* y) {
  in_tiles(s, 1, [&](int64_t first, int64_t lanes, int64_t at, int64_t pixel, int64_t pixels) ALWAYS {
    convolve_tile(s, image, pixel, pixels, packed + at, lanes / kLanes,
                  {y + pixel * s.features + first, s.features, s.features - first});
  });
}

// Convolves a padded image and calls emit(pixel, feature, z) for each pixel and each vector of features, the first of
// which is `feature`. z[part] is the result of a part, which is zero beyond the last feature.
template <int kParts, typename Emit>
void convolve_and(const Shape& s, const float* image, const float* packed, Emit emit) {
  in_tiles(s, kParts, [&](int64_t first, int64_t lanes, int64_t at, int64_t pixel, int64_t pixels) ALWAYS {
    alignas(kBytes) float sums[kMaxTile * kLanes];
    const int64_t row = kParts * lanes;
    convolve_tile(s, image, pixel, pixels, packed + at, row / kLanes, {sums, row, row});
    for (int64_t p = 0; p < pixels; p++)
      for (int64_t lane = 0; lane < lanes; lane += kLanes) {
        Vector z[kParts];
        for (int part = 0; part < kParts; part++) z[part] = load(sums + p * row + part * lanes + lane);
        emit(pixel + p, first + lane, z);
      }
  });
}

// The cotangents of some images, in whole vectors of features, with the distances between images and between rows.
struct Lines {
  const float* first;
  int64_t image, row;
};

// Adds the gradient from padded images, which are `image_size` apart, to a tile (taps, vectors) of a packed kernel.
void correlate_tile(const Shape& s, int64_t count, const float* images, int64_t image_size, const Lines& dy,
                    int64_t taps, int64_t vectors, float* packed) {
  with_static<kMaxVectors>(vectors, [&](auto wide) ALWAYS {
    constexpr int kVectors = wide;
    with_static<tile_rows(kVectors)>(taps, [&](auto high) ALWAYS {
      constexpr int kTaps = high;
      Vector sums[kTaps][kVectors];
      for (int t = 0; t < kTaps; t++)
        for (int v = 0; v < kVectors; v++) sums[t][v] = load(packed + (t * kVectors + v) * kLanes);
      const int64_t next_factors = s.right * s.channels, next_line = s.vectors() * kLanes;
      for (int64_t image = 0; image < count; image++)
        for (int64_t y = 0; y < s.height; y++) {
          const float* factors = images + image * image_size + y * s.down * s.padded_row();
          const float* lines = dy.first + image * dy.image + y * dy.row;
          for (int64_t x = 0; x < s.width; x++, factors += next_factors, lines += next_line) {
            Vector line[kVectors];
            for (int v = 0; v < kVectors; v++) line[v] = load(lines + v * kLanes);
            for (int t = 0; t < kTaps; t++) {
              const Vector one = fill(factors[t]);
              for (int v = 0; v < kVectors; v++) sums[t][v] += one * line[v];
            }
          }
        }
      for (int t = 0; t < kTaps; t++)
        for (int v = 0; v < kVectors; v++) store(packed + (t * kVectors + v) * kLanes, sums[t][v]);
    });
  });
}

// Adds the gradient of the kernel from `count` padded images to a packed kernel.
void correlate(const Shape& s, int64_t count, const float* images, int64_t image_size, const Lines& dy,
               float* packed) {
  in_blocks(s, 1, [&](int64_t first, int64_t lanes, int64_t at) {
    for (int64_t row = 0; row < s.rows; row++)
      in_parts(s.run(), tile_rows(lanes / kLanes), [&](int64_t tap, int64_t taps) {
        correlate_tile(s, count, images + row * s.padded_row() + tap, image_size, {dy.first + first, dy.image, dy.row},
                       taps, lanes / kLanes, packed + at + (row * s.run() + tap) * lanes);
      });
  });
}

// How a batch is divided to sum gradients of weights. Groups are summed in parallel, the images of a group in sequence.
// A few images are processed together, so that sums stay in registers for longer. The division depends only on the
// sizes and not on the number of threads, and so does the rounding of the sums.
struct Groups {
  int64_t batch, count, together;
  explicit Groups(const Shape& s)
      : batch(s.batch),
        count(std::max<int64_t>(1, std::min({s.batch, s.batch * s.pixels() / 1024, int64_t{16}}))),
        together(std::max<int64_t>(1, 256 / s.pixels())) {}
  int64_t first(int64_t group) const { return group * batch / count; }
};

// Adds the sums of later groups to those of the first.
void add_groups(int64_t groups, int64_t size, float* sums) {
  for (int64_t group = 1; group < groups; group++)
    for (int64_t at = 0; at < size; at += kLanes) store(sums + at, load(sums + at) + load(sums + group * size + at));
}

using Array = ffi::Buffer<ffi::F32>;
using Index = ffi::Buffer<ffi::S32>;
using Result = ffi::Result<Array>;
using Numbers = ffi::Span<const int64_t>;

ffi::Error no_memory() { return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no memory for a convolution"); }

// The part that all calls share. Arrays have leading dimensions for runs, each of which has its own weights.
struct Call {
  ffi::ThreadPool pool;
  int64_t threads, runs;

  Call(ffi::ThreadPool pool, const Array& x, int64_t devices)
      : pool(pool), threads(std::max<int64_t>(1, pool.num_threads() / devices)), runs(1) {
    for (size_t axis = 0; axis + 4 < x.dimensions().size(); axis++) runs *= x.dimensions()[axis];
  }

  // Calls work(i) for each i < count, in this thread and in free threads of the pool, and returns when all are done.
  template <typename Work>
  void in_threads(int64_t count, const Work& work) {
    struct Progress {
      std::atomic<int64_t> begun{0}, done{0};
    };
    const auto progress = std::make_shared<Progress>();
    const auto take = [progress, count, &work] {  // a late thread, for which `work` is gone, finds nothing to do
      for (int64_t i; (i = progress->begun++) < count; progress->done++) work(i);
    };
    for (int64_t i = 1; i < std::min(threads, count); i++) pool.Schedule([take] { take(); });
    take();
    while (progress->done < count) std::this_thread::yield();
  }

  // Calls work(i, image, padded) for each image of a run, in threads; `i` counts the images of all runs. Returns false
  // if there is not enough memory.
  template <typename Work>
  bool over_images(const Shape& s, const Array& x, int64_t run, const Work& work) {
    const int64_t chunks = threads == 1 ? 1 : std::min(s.batch, 4 * threads);
    std::atomic<bool> failed{false};
    in_threads(chunks, [&](int64_t chunk) {
      const Memory padded = zeros(s.is_padded() ? s.padded_size() : 0);
      if (!padded) return void(failed = true);
      for (int64_t i = chunk * s.batch / chunks; i < (chunk + 1) * s.batch / chunks; i++) {
        const int64_t number = run * s.batch + i;
        const float* image = x.typed_data() + number * s.in_size();
        if (s.is_padded()) pad(s, image, padded.get());
        work(number, image, s.is_padded() ? padded.get() : image);
      }
    });
    return !failed;
  }

  // Calls work(group, i, count, images, scratch) for a few images of each group at a time, in threads. `images` are
  // padded, and `i` is the number of the first. `scratch` has `scratch` floats for each image, which are zero at first.
  // Returns false if there is not enough memory.
  template <typename Work>
  bool over_groups(const Shape& s, const Groups& groups, const Array& x, int64_t run, int64_t scratch,
                   const Work& work) {
    const int64_t padded_size = s.is_padded() ? s.padded_size() : 0;
    std::atomic<bool> failed{false};
    in_threads(groups.count, [&](int64_t group) {
      const Memory memory = zeros(groups.together * (padded_size + scratch));
      if (!memory) return void(failed = true);
      float* padded = memory.get();
      for (int64_t i = groups.first(group), end = groups.first(group + 1), count; i < end; i += count) {
        count = std::min(groups.together, end - i);
        const int64_t number = run * s.batch + i;
        const float* images = x.typed_data() + number * s.in_size();
        for (int64_t image = 0; image < count && padded_size; image++)
          pad(s, images + image * s.in_size(), padded + image * padded_size);
        work(group, number, count, padded_size ? padded : images, padded + groups.together * padded_size);
      }
    });
    return !failed;
  }
};

struct Sizes {
  Numbers window, strides, dilation, padding;
};

// The shape of a convolution from x (..., batch, height, width, channels) to y (..., batch, height', width', features).
Shape shape_of(const Array& x, const Array& y, const Sizes& sizes) {
  const auto in = x.dimensions().last(4), out = y.dimensions().last(4);
  const auto padded = [&](int axis) {
    return sizes.padding[2 * axis] + 1 + (in[1 + axis] - 1) * sizes.dilation[axis] + sizes.padding[2 * axis + 1];
  };
  return {in[0],
          in[1],
          in[2],
          in[3],
          out[1],
          out[2],
          out[3],
          sizes.window[0],
          sizes.window[1],
          sizes.strides[0],
          sizes.strides[1],
          sizes.dilation[0],
          sizes.dilation[1],
          sizes.padding[0],
          sizes.padding[2],
          padded(0),
          padded(1)};
}

constexpr int64_t kOnes[] = {1, 1};

// Computes y from (x, kernel), or, if `flipped`, x from (kernel, y), as a convolution of y with the flipped kernel.
ffi::Error convolution(ffi::ThreadPool pool, Array first, Array second, Result y, Numbers window, Numbers strides,
                       Numbers dilation, Numbers padding, bool flipped, int64_t devices) {
  const Array &x = flipped ? second : first, &kernel = flipped ? first : second;
  const Shape s = shape_of(x, *y, {window, strides, dilation, padding});
  Call call(pool, x, devices);
  const Memory packed = zeros(s.packed_size());
  if (!packed) return no_memory();
  for (int64_t run = 0; run < call.runs; run++) {
    const float* weights = kernel.typed_data() + run * s.kernel_size();
    if (flipped)
      pack_flipped(s, weights, 0, s.channels, packed.get());
    else
      pack(s, {weights}, packed.get());
    const bool done = call.over_images(s, x, run, [&](int64_t i, const float*, const float* padded) {
      convolve(s, padded, packed.get(), y->typed_data() + i * s.out_size());
    });
    if (!done) return no_memory();
  }
  return ffi::Error::Success();
}

// Computes the gradient of the kernel from x and the cotangent of y.
ffi::Error kernel_gradient(ffi::ThreadPool pool, Array x, Array dy, Result dkernel, Numbers window, Numbers strides,
                           Numbers padding, int64_t devices) {
  const Shape s = shape_of(x, dy, {window, strides, Numbers(kOnes, 2), padding});
  Call call(pool, x, devices);
  const Groups groups(s);
  const int64_t side = s.vectors() * kLanes, lines_size = side == s.features ? 0 : s.pixels() * side;
  const Memory sums = zeros(groups.count * s.packed_size());
  if (!sums) return no_memory();
  for (int64_t run = 0; run < call.runs; run++) {
    if (run) std::memset(sums.get(), 0, groups.count * s.packed_size() * sizeof(float));
    const auto add = [&](int64_t group, int64_t i, int64_t count, const float* images, float* copies) {
      const float* lines = dy.typed_data() + i * s.out_size();
      for (int64_t pixel = 0; pixel < count * s.pixels() && lines_size; pixel++)
        std::memcpy(copies + pixel * side, lines + pixel * s.features, s.features * sizeof(float));
      correlate(s, count, images, s.padded_size(),
                {lines_size ? copies : lines, s.pixels() * side, s.width * side},
                sums.get() + group * s.packed_size());
    };
    if (!call.over_groups(s, groups, x, run, lines_size, add)) return no_memory();
    add_groups(groups.count, s.packed_size(), sums.get());
    unpack(s, sums.get(), 0, s.features, dkernel->typed_data() + run * s.kernel_size());
  }
  return ffi::Error::Success();
}

// Computes a convolutional highway layer (Eq. 1 and 3): y, and h and t for the backward pass, all of x's shape.
ffi::Error highway_forward(ffi::ThreadPool pool, Array x, Array h_kernel, Array h_bias, Array t_kernel, Array t_bias,
                           Index index, Result y, Result h, Result t, Numbers window, Numbers padding,
                           int64_t devices) {
  const Shape s = shape_of(x, *y, {window, Numbers(kOnes, 2), Numbers(kOnes, 2), padding});
  Call call(pool, x, devices);
  const Memory packed = zeros(2 * s.packed_size());
  if (!packed) return no_memory();
  for (int64_t run = 0; run < call.runs; run++) {
    const int64_t weights = run * s.kernel_size(), biases = run * s.features;
    pack(s, {h_kernel.typed_data() + weights, t_kernel.typed_data() + weights}, packed.get());
    const bool done = call.over_images(s, x, run, [&](int64_t i, const float* image, const float* padded) {
      convolve_and<2>(s, padded, packed.get(), [&](int64_t pixel, int64_t feature, const Vector(&z)[2]) ALWAYS {
        const int64_t at = pixel * s.features + feature, count = s.features - feature;
        const auto bias = [&](const Array& array) ALWAYS {
          return load_some(array.typed_data() + biases + feature, count);
        };
        const Vector block = activation(z[0] + bias(h_bias), index.typed_data()[run]);
        const Vector gate = sigmoid(z[1] + bias(t_bias)), before = load_some(image + at, count);
        const int64_t to = i * s.out_size() + at;
        store_some(h->typed_data() + to, block, count);
        store_some(t->typed_data() + to, gate, count);
        store_some(y->typed_data() + to, block * gate + before * (1.0f - gate), count);
      });
    });
    if (!done) return no_memory();
  }
  return ffi::Error::Success();
}

// Computes the gradients of a convolutional highway layer (Eq. 9 and the chain rule). `transposed` is the padding of
// dz, which is convolved with the flipped kernels to give dx.
ffi::Error highway_backward(ffi::ThreadPool pool, Array dy, Array x, Array h, Array t, Array h_kernel, Array,
                            Array t_kernel, Array, Index index, Result dx, Result dh_kernel, Result dh_bias,
                            Result dt_kernel, Result dt_bias, Numbers window, Numbers padding, Numbers transposed,
                            int64_t devices) {
  const Numbers ones(kOnes, 2);
  // For the gradients of the kernels, the features are those of H's and of T's dz side by side, in whole vectors.
  Shape s = shape_of(x, dy, {window, ones, ones, padding}), back = shape_of(dy, x, {window, ones, ones, transposed});
  const int64_t width = s.features, side = whole_vectors(2 * width), pixels = s.pixels(), size = s.out_size();
  const int64_t kernel_size = s.kernel_size();
  s.features = back.channels = side;
  Call call(pool, x, devices);
  const Groups groups(s);
  const int64_t sums_size = s.packed_size() + side, first_line = back.top * back.padded_row() + back.left * side;
  const Memory packed = zeros(back.packed_size()), sums = zeros(groups.count * sums_size);
  if (!packed || !sums) return no_memory();
  for (int64_t run = 0; run < call.runs; run++) {
    if (run) std::memset(sums.get(), 0, groups.count * sums_size * sizeof(float));
    pack_flipped(back, h_kernel.typed_data() + run * kernel_size, 0, width, packed.get());
    pack_flipped(back, t_kernel.typed_data() + run * kernel_size, width, width, packed.get());
    const int32_t which = index.typed_data()[run];
    const auto add = [&](int64_t group, int64_t i, int64_t count, const float* images, float* dz) {
      float *kernel_sums = sums.get() + group * sums_size, *bias_sums = kernel_sums + s.packed_size();
      for (int64_t image = 0; image < count; image++) {
        const int64_t begin = (i + image) * size;
        float* lines = dz + image * back.padded_size();
        for (int64_t pixel = 0; pixel < pixels; pixel++) {
          float* line = lines + first_line + pixel / s.width * back.padded_row() + pixel % s.width * side;
          for (int64_t feature = 0; feature < width; feature += kLanes) {
            const int64_t at = begin + pixel * width + feature, rest = width - feature;
            const Vector block = load_some(h.typed_data() + at, rest), gate = load_some(t.typed_data() + at, rest);
            const Vector before = load_some(x.typed_data() + at, rest), dy_at = load_some(dy.typed_data() + at, rest);
            const Vector dh = dy_at * gate;
            store_some(line + feature, dh * derivative(block, which), rest);
            store_some(line + width + feature, dh * (1.0f - gate) * (block - before), rest);
          }
          for (int64_t at = 0; at < side; at += kLanes) store(bias_sums + at, load(bias_sums + at) + load(line + at));
        }
        convolve_and<1>(back, lines, packed.get(), [&](int64_t pixel, int64_t feature, const Vector(&z)[1]) ALWAYS {
          const int64_t at = begin + pixel * width + feature, rest = width - feature;
          const Vector gate = load_some(t.typed_data() + at, rest), dy_at = load_some(dy.typed_data() + at, rest);
          store_some(dx->typed_data() + at, z[0] + (1.0f - gate) * dy_at, rest);
        });
      }
      correlate(s, count, images, s.padded_size(), {dz + first_line, back.padded_size(), back.padded_row()},
                kernel_sums);
    };
    if (!call.over_groups(s, groups, x, run, back.padded_size(), add)) return no_memory();
    add_groups(groups.count, sums_size, sums.get());
    const float* bias_sums = sums.get() + s.packed_size();
    unpack(s, sums.get(), 0, width, dh_kernel->typed_data() + run * kernel_size);
    unpack(s, sums.get(), width, width, dt_kernel->typed_data() + run * kernel_size);
    std::memcpy(dh_bias->typed_data() + run * width, bias_sums, width * sizeof(float));
    std::memcpy(dt_bias->typed_data() + run * width, bias_sums + width, width * sizeof(float));
  }
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(highway_convolution, convolution,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Arg<Array>().Ret<Array>()
                                  .Attr<Numbers>("window").Attr<Numbers>("strides").Attr<Numbers>("dilation")
                                  .Attr<Numbers>("padding").Attr<bool>("flipped").Attr<int64_t>("devices"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(highway_convolution_kernel, kernel_gradient,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Arg<Array>().Ret<Array>()
                                  .Attr<Numbers>("window").Attr<Numbers>("strides").Attr<Numbers>("padding")
                                  .Attr<int64_t>("devices"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(highway_convolution_forward, highway_forward,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Arg<Array>().Arg<Array>()
                                  .Arg<Array>().Arg<Array>().Arg<Index>().Ret<Array>().Ret<Array>().Ret<Array>()
                                  .Attr<Numbers>("window").Attr<Numbers>("padding").Attr<int64_t>("devices"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(highway_convolution_backward, highway_backward,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Arg<Array>().Arg<Array>()
                                  .Arg<Array>().Arg<Array>().Arg<Array>().Arg<Array>().Arg<Array>().Arg<Index>()
                                  .Ret<Array>().Ret<Array>().Ret<Array>().Ret<Array>().Ret<Array>()
                                  .Attr<Numbers>("window").Attr<Numbers>("padding").Attr<Numbers>("transposed")
                                  .Attr<int64_t>("devices"));
