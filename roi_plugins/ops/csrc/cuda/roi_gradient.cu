// The gradients of boxes and offsets on CUDA devices: a thread for each bin, and a few dot products over channels.
// The bins are added up afterwards in their order, so that the sums are the same every time.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>

#include "box_gradient.h"
#include "cuda/per_bin.h"

namespace roi_plugins {
namespace {

template <typename S, typename Index>
struct BoxGradient : Bins<const S, accumulation_t<S>> {
  using A = accumulation_t<S>;
  const S* grad;
  const Index* argmax;  // nullptr for an average
  A* grad_rois;
  A* grad_offsets;  // or nullptr

  BoxGradient(
      const Call& call, at::TensorList features, const at::Tensor& grad, const at::Tensor& argmax,
      at::Tensor& grad_rois, at::Tensor& grad_offsets)
      : Bins<const S, A>(call, features), grad(grad.const_data_ptr<S>()),
        argmax(call.options.max ? argmax.const_data_ptr<Index>() : nullptr),
        grad_rois(grad_rois.data_ptr<A>()),
        grad_offsets(grad_offsets.defined() ? grad_offsets.data_ptr<A>() : nullptr) {}

  int64_t size() const { return this->num_rois * this->pooled_height * this->pooled_width; }

  __device__ void run(int64_t item) const {
    const int64_t bins = this->bins(), k = item / bins, b = item % bins;
    if (this->state(k) != RoiState::read) return;
    const int64_t first = k * this->channels * bins + b, channel = this->channel_stride(k);
    const S* const map = this->map(k, b);
    const auto dot = [&](int64_t sample, int row, int column) {
      const S* const cell = map + this->cell(k, row, column);
      A sum = 0;
      for (int64_t c = 0; c < this->channels; ++c) {
        const int64_t at = first + c * bins;
        if (argmax != nullptr && argmax[at] != Index(sample)) continue;
        sum = fma(static_cast<A>(grad[at]), static_cast<A>(cell[c * channel]), sum);
      }
      return sum;
    };
    bin_gradient(
        this->method, argmax == nullptr, this->roi_dim == 6, *this, k, b, this->pooled_height, this->pooled_width,
        this->pyramid.scale[this->levels[k]], dot, grad_rois + item * this->roi_dim + 1, grad_offsets);
  }
};

}  // namespace

void backward_rois_cuda(
    const Call& given, const at::Tensor& grad, const at::Tensor& argmax, at::TensorList features,
    at::Tensor& grad_rois, at::Tensor& grad_offsets) {
  const DeviceGuard guard(grad.device());
  const Call call = with_levels(given);
  const at::Tensor read = grad.contiguous(), argmaxes = argmax.contiguous();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, grad.scalar_type(), "roi_gradient", [&] {
    if (call.options.argmax_type() == at::kByte) {
      launch_bins(BoxGradient<scalar_t, uint8_t>(
          call, features, read, argmaxes, grad_rois, grad_offsets));
    } else {
      launch_bins(BoxGradient<scalar_t, int32_t>(
          call, features, read, argmaxes, grad_rois, grad_offsets));
    }
  });
}

}  // namespace roi_plugins
