// The gradients of boxes and offsets on CUDA devices: a thread a bin, each a few products over channels. Parts of
// bins are added up afterwards, so that the sums come out the same every time.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>

#include "box_gradient.h"
#include "cuda/bins.h"

namespace roi_plugins {
namespace {

template <typename S, typename Index>
struct BoxGradient : Bins<const S, accumulation_t<S>> {
  using A = accumulation_t<S>;
  const S* grad;
  const Index* winner;  // nullptr for an average
  A* grad_rois;
  A* grad_offsets;  // or nullptr

  BoxGradient(
      const Call& call, at::TensorList features, const at::Tensor& grad, const at::Tensor& winner,
      at::Tensor& grad_rois, at::Tensor& grad_offsets)
      : Bins<const S, A>(call, features), grad(grad.const_data_ptr<S>()),
        winner(call.options.max ? winner.const_data_ptr<Index>() : nullptr),
        grad_rois(grad_rois.data_ptr<A>()),
        grad_offsets(grad_offsets.defined() ? grad_offsets.data_ptr<A>() : nullptr) {}

  int64_t size() const { return this->num_rois * this->pooled_height * this->pooled_width; }

  __device__ void run(int64_t item) const {
    const int64_t bins = this->bins(), k = item / bins, b = item % bins;
    if (this->state(k) != RoiState::read) return;
    const int p = int(b / this->pooled_width), q = int(b % this->pooled_width);
    const int64_t first = k * this->channels * bins + b, channel = this->channel_stride(k);
    const S* const map = this->map(k, b);
    const auto dot = [&](int64_t sample, int row, int column) {
      const S* const cell = map + this->cell(k, row, column);
      A sum = 0;
      for (int64_t c = 0; c < this->channels; ++c) {
        const int64_t at = first + c * bins;
        if (winner != nullptr && winner[at] != Index(sample)) continue;
        sum = fma(static_cast<A>(grad[at]), static_cast<A>(cell[c * channel]), sum);
      }
      return sum;
    };
    A* const box = grad_rois + item * this->numbers + 1;
    const A scale = this->pyramid.scale[this->levels[k]];
    const bool average = winner == nullptr;
    if (this->numbers == 6) {
      rotated_bin_gradient(
          this->method, average, this->rotated_box(k), p, q, this->pooled_height,
          this->pooled_width, scale, dot, box);
      return;
    }
    const Offset<A> offset = this->offset(k, b);
    if (!offset.is_finite()) return;
    A by_offset[2] = {};
    upright_bin_gradient(
        this->method, average, moved(this->y_axis(k), offset.y), moved(this->x_axis(k), offset.x), p,
        q, this->pooled_height, this->pooled_width, scale, offset, dot, box, by_offset);
    if (grad_offsets == nullptr) return;
    grad_offsets[2 * k * bins + b] = by_offset[0];
    grad_offsets[(2 * k + 1) * bins + b] = by_offset[1];
  }
};

}  // namespace

void backward_rois_cuda(
    const Call& call, const at::Tensor& grad, const at::Tensor& winner, at::TensorList features,
    at::Tensor& grad_rois, at::Tensor& grad_offsets) {
  const DeviceGuard guard(grad.device());
  const at::Tensor read = grad.contiguous(), winners = winner.contiguous();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, grad.scalar_type(), "roi_gradient", [&] {
    if (call.options.winner_type() == at::kByte) {
      launch_bins(BoxGradient<scalar_t, uint8_t>(
          call, features, read, winners, grad_rois, grad_offsets));
    } else {
      launch_bins(BoxGradient<scalar_t, int32_t>(
          call, features, read, winners, grad_rois, grad_offsets));
    }
  });
}

}  // namespace roi_plugins
