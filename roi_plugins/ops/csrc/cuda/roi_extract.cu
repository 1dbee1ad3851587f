// Forward and backward on CUDA devices: which kernel runs, and what it is given (docs/kernels.md).
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "cuda/per_bin.h"
#include "cuda/separable.h"

namespace roi_plugins {
namespace {

template <typename S>
__global__ void from_fixed_point(
    const int64_t* sums, S* grads, int64_t count, const double* scale) {
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  const double inverse = 1 / *scale;  // exact, of a power of two
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    grads[i] = S(static_cast<accumulation_t<S>>(double(sums[i]) * inverse));
  }
}

at::Tensor unfilled_map(const Call& call, int64_t level, at::ScalarType type) {
  return uninitialized(
      {call.images(), call.channels(), call.height(level), call.width(level)}, type,
      call.rois.device(), call.format());
}

std::vector<at::Tensor> zeroed_maps(const Call& call, at::ScalarType type) {
  std::vector<at::Tensor> maps;
  for (int64_t l = 0; l < call.num_levels(); ++l) maps.push_back(unfilled_map(call, l, type).zero_());
  return maps;
}

// Whether every group of V channels lies side by side and on a boundary of 16 bytes.
bool packs(int V, const at::Tensor& tensor) {
  return tensor.size(1) % V == 0 && tensor.stride(0) % V == 0 && tensor.stride(1) == 1 &&
      tensor.stride(2) % V == 0 && tensor.stride(3) % V == 0 &&
      reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
}
bool packs(int V, at::TensorList tensors) {
  return std::all_of(tensors.begin(), tensors.end(), [&](const at::Tensor& tensor) {
    return packs(V, tensor);
  });
}

template <typename S, typename Index>
void launch_forward(
    const Call& call, at::TensorList features, at::Tensor& output, at::Tensor& argmax) {
  const bool packed = packs(kVector<S>, features) && packs(kVector<S>, output);
  if (call.has_single_bins()) {
    const bool side_by_side = packed && call.groups() == 1;
    if (call.options.max) {
      launch_bins(BinMaximumForward<S, Index>(call, features, output, argmax));
    } else if (side_by_side) {
      launch_bins(BinAverageForward<S, true>(call, features, output));
    } else {
      launch_bins(BinAverageForward<S, false>(call, features, output));
    }
  } else if (call.options.max) {
    if (packed) {
      launch_work(MaximumForward<S, Index, true>(call, features, output, argmax));
    } else {
      launch_work(MaximumForward<S, Index, false>(call, features, output, argmax));
    }
  } else if (packed) {
    launch_work(AverageForward<S, true>(call, features, output));
  } else {
    launch_work(AverageForward<S, false>(call, features, output));
  }
}

template <typename S, typename Index, typename Sum>
void launch_backward(
    const Call& call, const at::Tensor& grad, const at::Tensor& argmax,
    const std::vector<at::Tensor>& sums, const Sum& sum) {
  if (call.has_single_bins()) {
    if (call.options.max) {
      launch_bins(BinMaximumBackward<S, Index, Sum>(call, sums, grad, argmax, sum));
    } else {
      launch_bins(BinAverageBackward<S, Sum>(call, sums, grad, sum));
    }
    return;
  }
  if (call.options.max) {
    launch_work(MaximumBackward<S, Index, Sum>(call, sums, grad, argmax, sum));
    return;
  }
  if constexpr (std::is_same_v<Sum, FloatingSum<float>>) {
    if (has_vector_atomics() && packs(kVector<S>, sums) && packs(kVector<S>, grad)) {
      launch_work(AverageBackward<S, Sum, true>(call, sums, grad, sum));
      return;
    }
  }
  launch_work(AverageBackward<S, Sum, false>(call, sums, grad, sum));
}

// The largest power of two with which no sum of a cell overflows 62 bits; each element of the output adds at most its
// own gradient to a cell. NaN if a gradient is not finite, which makes all results NaN.
at::Tensor fixed_point_scale(const at::Tensor& grad) {
  const at::Tensor largest =
      at::linalg_vector_norm(grad, std::numeric_limits<double>::infinity()).to(at::kDouble);
  const double outputs = double(grad.numel()) / double(std::max<int64_t>(grad.size(1), 1));
  // The sum of logarithms, since the product may overflow.
  const at::Tensor bits = at::ceil(at::log2(largest)) + std::ceil(std::log2(outputs));
  // A gradient of zeros needs no room; 2^512 and its inverse are finite.
  const at::Tensor scale = at::exp2(61 - at::clamp(bits, -451));
  return at::where(
      at::isfinite(largest), scale,
      at::full_like(scale, std::numeric_limits<double>::quiet_NaN()));
}

#define ROI_DISPATCH_TYPES(type, ...) \
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, type, "roi_extract", [&] { \
    if (call.options.argmax_type() == at::kByte) { \
      using index_t = uint8_t; \
      __VA_ARGS__ \
    } else { \
      using index_t = int32_t; \
      __VA_ARGS__ \
    } \
  })

}  // namespace

void forward_cuda(
    const Call& given, at::TensorList features, at::Tensor& output, at::Tensor& argmax) {
  const DeviceGuard guard(output.device());
  const Call call = with_levels(given);
  ROI_DISPATCH_TYPES(output.scalar_type(), {
    launch_forward<scalar_t, index_t>(call, features, output, argmax);
  });
}

std::vector<at::Tensor> backward_cuda(
    const Call& given, const at::Tensor& grad, const at::Tensor& argmax) {
  const DeviceGuard guard(grad.device());
  const Call call = with_levels(given);
  const at::ScalarType type = grad.scalar_type();
  if (!at::globalContext().deterministicAlgorithms()) {
    auto sums = zeroed_maps(call, accumulation_type(type));
    ROI_DISPATCH_TYPES(type, {
      launch_backward<scalar_t, index_t>(
          call, grad, argmax, sums, FloatingSum<accumulation_t<scalar_t>>{});
    });
    for (at::Tensor& sum : sums) sum = sum.to(type);
    return sums;
  }
  const at::Tensor scale = fixed_point_scale(grad);
  const auto sums = zeroed_maps(call, at::kLong);
  std::vector<at::Tensor> grads;
  ROI_DISPATCH_TYPES(type, {
    launch_backward<scalar_t, index_t>(
        call, grad, argmax, sums,
        FixedPointSum<accumulation_t<scalar_t>>{scale.const_data_ptr<double>()});
    for (int64_t l = 0; l < call.num_levels(); ++l) {
      const int64_t count = sums[l].numel();
      grads.push_back(unfilled_map(call, l, type));
      launch(
          from_fixed_point<scalar_t>, grid_of_elements(count), sums[l].const_data_ptr<int64_t>(),
          grads.back().data_ptr<scalar_t>(), count, scale.const_data_ptr<double>());
    }
  });
  return grads;
}

}  // namespace roi_plugins
