// The op on CUDA devices. One thread computes one element of the output, or spreads one of its gradient;
// neighbouring threads take neighbouring elements in memory, whichever the layout.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>

#include <algorithm>
#include <limits>

#include "accumulate.h"
#include "cuda/launch.h"
#include "op.h"

namespace roi_plugins {
namespace {

// A pyramid of maps in any layout, small enough to be an argument of a kernel.
template <typename S, typename A>
struct Pyramid {
  S* data[kMaxLevels];
  int64_t stride[kMaxLevels][4];
  int height[kMaxLevels], width[kMaxLevels];
  A scale[kMaxLevels];

  Pyramid(const Call& call, at::TensorList maps) {
    for (int64_t l = 0; l < call.num_levels(); ++l) {
      data[l] = static_cast<S*>(maps[l].data_ptr());
      for (int d = 0; d < 4; ++d) stride[l][d] = maps[l].stride(d);
      height[l] = int(call.height(l));
      width[l] = int(call.width(l));
      scale[l] = A(call.options.scales[l]);
    }
  }
};

template <typename A>
struct Rois {
  const A* rois;
  const int64_t* levels;
  int64_t count, images, channels, num_levels;
  int pooled_height, pooled_width;
  Method method;
  bool channels_last;

  explicit Rois(const Call& call)
      : rois(call.rois.const_data_ptr<A>()), levels(call.levels.const_data_ptr<int64_t>()),
        count(call.num_rois()), images(call.images()), channels(call.channels()),
        num_levels(call.num_levels()), pooled_height(call.options.pooled_height),
        pooled_width(call.options.pooled_width), method(call.options.method),
        channels_last(call.channels_last) {}

  __host__ __device__ int64_t elements() const {
    return count * channels * pooled_height * pooled_width;
  }
};

// Which bin of which RoI, in which channel, an element of the output is; and where it reads.
template <typename S, typename A>
struct Element {
  RoiState state;
  S* map;  // the image's plane of the channel
  int64_t row_stride, column_stride;
  Axis<A> y, x;
  int p, q;

  __device__ Element(const Rois<A>& rois, const Pyramid<S, A>& pyramid, int64_t index) {
    int64_t channel, k;
    if (rois.channels_last) {
      channel = index % rois.channels;
      index /= rois.channels;
      q = int(index % rois.pooled_width);
      index /= rois.pooled_width;
      p = int(index % rois.pooled_height);
      k = index / rois.pooled_height;
    } else {
      q = int(index % rois.pooled_width);
      index /= rois.pooled_width;
      p = int(index % rois.pooled_height);
      index /= rois.pooled_height;
      channel = index % rois.channels;
      k = index / rois.channels;
    }
    const A* const roi = rois.rois + 5 * k;
    const int64_t level = rois.levels[k];
    state = roi_state(roi, rois.images, level, rois.num_levels);
    if (state != RoiState::read) return;
    const int64_t* const stride = pyramid.stride[level];
    map = pyramid.data[level] + int64_t(roi[0]) * stride[0] + channel * stride[1];
    row_stride = stride[2];
    column_stride = stride[3];
    const A scale = pyramid.scale[level];
    y = make_axis(
        rois.method, roi[2], roi[4], scale, rois.pooled_height, pyramid.height[level]);
    x = make_axis(
        rois.method, roi[1], roi[3], scale, rois.pooled_width, pyramid.width[level]);
  }

  // Calls visit(cell, weight) for each cell that a sample reads.
  template <typename Visit>
  __device__ void for_each_tap(const Taps<A>& row, const Taps<A>& column, Visit&& visit) const {
    const auto tap = [&](int i, A row_weight, int j, A column_weight) {
      if (row_weight != A(0) && column_weight != A(0)) {
        visit(map + i * row_stride + j * column_stride, row_weight * column_weight);
      }
    };
    tap(row.low, row.low_weight, column.low, column.low_weight);
    tap(row.low, row.low_weight, column.high, column.high_weight);
    tap(row.high, row.high_weight, column.low, column.low_weight);
    tap(row.high, row.high_weight, column.high, column.high_weight);
  }

  __device__ A interpolate(const Taps<A>& row, const Taps<A>& column) const {
    A sum = 0;
    for_each_tap(row, column, [&](const S* cell, A weight) {
      sum = fma(weight, static_cast<A>(*cell), sum);
    });
    return sum;
  }
};

template <typename A>
__device__ A average_divisor(const Window<A>& y, const Window<A>& x) {
  const A count = y.count * x.count;
  return count > A(1) ? count : A(1);
}

template <typename S, typename A>
__global__ void average_kernel(const Rois<A> rois, const Pyramid<const S, A> pyramid, S* output) {
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t e = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; e < rois.elements(); e += step) {
    const Element<const S, A> element(rois, pyramid, e);
    if (element.state != RoiState::read) {
      output[e] = element.state == RoiState::zero ? S(A(0)) : S(A(NAN));
      continue;
    }
    const auto y = make_window(rois.method, element.y, element.p);
    const auto x = make_window(rois.method, element.x, element.q);
    A sum = 0;
    for (int64_t i = y.begin; i < y.end; ++i) {
      const auto row = make_taps(rois.method, element.y, element.p, i);
      for (int64_t j = x.begin; j < x.end; ++j) {
        sum += element.interpolate(row, make_taps(rois.method, element.x, element.q, j));
      }
    }
    output[e] = S(sum / average_divisor(y, x));
  }
}

template <typename S, typename A, typename Index>
__global__ void maximum_kernel(
    const Rois<A> rois, const Pyramid<const S, A> pyramid, S* output, Index* winner) {
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t e = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; e < rois.elements(); e += step) {
    const Element<const S, A> element(rois, pyramid, e);
    A best = 0;
    int64_t best_index = -1;
    if (element.state == RoiState::read) {
      const auto y = make_window(rois.method, element.y, element.p);
      const auto x = make_window(rois.method, element.x, element.q);
      const int64_t zero_after = first_outside(y, x);
      int64_t sample = 0;
      for (int64_t i = y.begin; i < y.end; ++i) {
        const auto row = make_taps(rois.method, element.y, element.p, i);
        for (int64_t j = x.begin; j < x.end; ++j, ++sample) {
          const A value =
              element.interpolate(row, make_taps(rois.method, element.x, element.q, j));
          // NaN takes the place and keeps it.
          if ((sample == 0 && zero_after != 0) || value > best || value != value) {
            best = value;
            best_index = sample;
          }
          if (sample + 1 == zero_after && A(0) > best) {
            best = 0;
            best_index = -1;
          }
        }
      }
    } else if (element.state == RoiState::invalid) {
      best = A(NAN);
    }
    output[e] = S(best);
    winner[e] = Index(best_index);
  }
}

// Sums that atomics build in whatever order the threads come.
template <typename A>
struct FloatingSum {
  using type = A;
  __device__ void add(A* cell, A value) const { atomicAdd(cell, value); }
};

// Sums that come out the same in any order: fixed point, eight bytes a cell. `scale` is a power of two
// that leaves room for every contribution of a call; it is on the device, so the host need not wait.
template <typename A>
struct FixedPointSum {
  using type = unsigned long long;
  const double* scale;
  __device__ void add(unsigned long long* cell, A value) const {
    atomicAdd(cell, static_cast<unsigned long long>(__double2ll_rn(double(value) * *scale)));
  }
};

template <typename S, typename A, typename Index, typename Sum>
__global__ void backward_kernel(
    const Rois<A> rois, const Pyramid<typename Sum::type, A> pyramid, const S* grad,
    const Index* winner, const Sum sum) {
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t e = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; e < rois.elements(); e += step) {
    const Element<typename Sum::type, A> element(rois, pyramid, e);
    if (element.state != RoiState::read) continue;
    const auto y = make_window(rois.method, element.y, element.p);
    const auto x = make_window(rois.method, element.x, element.q);
    A value = static_cast<A>(grad[e]);
    const auto spread = [&](int64_t i, int64_t j) {
      const auto row = make_taps(rois.method, element.y, element.p, i);
      const auto column = make_taps(rois.method, element.x, element.q, j);
      element.for_each_tap(row, column, [&](typename Sum::type* cell, A weight) {
        sum.add(cell, weight * value);
      });
    };
    if (winner != nullptr) {
      const Index index = winner[e];
      if (index == Index(-1)) continue;
      const int64_t width = x.end - x.begin;
      spread(y.begin + int64_t(index) / width, x.begin + int64_t(index) % width);
    } else {
      value /= average_divisor(y, x);
      for (int64_t i = y.begin; i < y.end; ++i) {
        for (int64_t j = x.begin; j < x.end; ++j) spread(i, j);
      }
    }
  }
}

template <typename S>
__global__ void from_fixed_point(
    const int64_t* sums, S* grads, int64_t count, const double* scale) {
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    grads[i] = S(static_cast<accumulation_t<S>>(double(sums[i]) / *scale));
  }
}

std::vector<at::Tensor> zeroed(const Call& call, at::TensorOptions options) {
  std::vector<at::Tensor> maps;
  for (int64_t l = 0; l < call.num_levels(); ++l) {
    // Not at::zeros, which knows no memory format.
    maps.push_back(at::empty(
        {call.images(), call.channels(), call.height(l), call.width(l)},
        options.memory_format(call.format())).zero_());
  }
  return maps;
}

template <typename S, typename Index, typename Sum>
void launch_backward(
    const Call& call, const at::Tensor& grad, const at::Tensor& winner,
    const std::vector<at::Tensor>& sums, const Sum& sum) {
  using A = accumulation_t<S>;
  const Rois<A> rois(call);
  const Pyramid<typename Sum::type, A> pyramid(call, sums);
  const Index* const winners = call.options.max ? winner.const_data_ptr<Index>() : nullptr;
  launch(
      backward_kernel<S, A, Index, Sum>, rois.elements(), rois, pyramid,
      grad.const_data_ptr<S>(), winners, sum);
}

// The largest power of two by which no sum of a cell overflows 62 bits: each output element adds at most
// its own gradient to a cell. NaN, and so are all gradients, where one of them is not finite.
at::Tensor fixed_point_scale(const at::Tensor& grad) {
  const at::Tensor largest =
      at::linalg_vector_norm(grad, std::numeric_limits<double>::infinity()).to(at::kDouble);
  const double outputs = double(grad.numel()) / double(std::max<int64_t>(grad.size(1), 1));
  const at::Tensor bits = at::ceil(at::log2(largest * outputs));
  // A gradient of zeros needs no room; 2^512 and its inverse are finite.
  const at::Tensor scale = at::exp2(61 - at::clamp(bits, -451));
  return at::where(
      at::isfinite(largest), scale,
      at::full_like(scale, std::numeric_limits<double>::quiet_NaN()));
}

#define ROI_DISPATCH_TYPES(type, ...) \
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, type, "roi_extract", [&] { \
    if (call.options.winner_type() == at::kByte) { \
      using index_t = uint8_t; \
      __VA_ARGS__ \
    } else { \
      using index_t = int32_t; \
      __VA_ARGS__ \
    } \
  })

}  // namespace

void forward_cuda(
    const Call& call, at::TensorList features, at::Tensor& output, at::Tensor& winner) {
  const DeviceGuard guard(output.device());
  ROI_DISPATCH_TYPES(output.scalar_type(), {
    using A = accumulation_t<scalar_t>;
    const Rois<A> rois(call);
    const Pyramid<const scalar_t, A> pyramid(call, features);
    if (call.options.max) {
      launch(
          maximum_kernel<scalar_t, A, index_t>, rois.elements(), rois, pyramid,
          output.data_ptr<scalar_t>(), winner.data_ptr<index_t>());
    } else {
      launch(
          average_kernel<scalar_t, A>, rois.elements(), rois, pyramid,
          output.data_ptr<scalar_t>());
    }
  });
}

std::vector<at::Tensor> backward_cuda(
    const Call& call, const at::Tensor& grad, const at::Tensor& winner) {
  const DeviceGuard guard(grad.device());
  const at::ScalarType type = grad.scalar_type();
  if (!at::globalContext().deterministicAlgorithms()) {
    auto sums = zeroed(call, grad.options().dtype(accumulation_type(type)));
    ROI_DISPATCH_TYPES(type, {
      launch_backward<scalar_t, index_t>(
          call, grad, winner, sums, FloatingSum<accumulation_t<scalar_t>>{});
    });
    for (at::Tensor& sum : sums) sum = sum.to(type);
    return sums;
  }
  const at::Tensor scale = fixed_point_scale(grad);
  const auto sums = zeroed(call, grad.options().dtype(at::kLong));
  std::vector<at::Tensor> grads;
  ROI_DISPATCH_TYPES(type, {
    launch_backward<scalar_t, index_t>(
        call, grad, winner, sums,
        FixedPointSum<accumulation_t<scalar_t>>{scale.const_data_ptr<double>()});
    for (const at::Tensor& sum : sums) {
      grads.push_back(at::empty_like(sum, grad.options()));
      launch(
          from_fixed_point<scalar_t>, sum.numel(), sum.const_data_ptr<int64_t>(),
          grads.back().data_ptr<scalar_t>(), sum.numel(), scale.const_data_ptr<double>());
    }
  });
  return grads;
}

}  // namespace roi_plugins
