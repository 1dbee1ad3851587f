// The gradients of boxes and offsets on the CPU: bin by bin, each a few products over channels.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include "../box_gradient.h"
#include "loops.h"
#include "rois.h"

namespace roi_plugins {
namespace {

// A bin with its channels side by side, and what they were read from.
template <typename S, typename Index>
struct BinProducts {
  const S* grad;
  const Index* winner;  // nullptr for an average
  const S* map;         // of the image, at the bin's first channel
  int64_t row_stride, stride, channels;

  template <typename A = accumulation_t<S>>
  A operator()(int64_t sample, int row, int column) const {
    const S* const cell = map + row * row_stride + column * stride;
    if (winner == nullptr) return dot(grad, cell, channels);
    A sum = 0;
    for (int64_t c = 0; c < channels; ++c) {
      if (winner[c] == Index(sample)) sum += A(grad[c]) * A(cell[c]);
    }
    return sum;
  }
};

// `maps` are channels_last, the channels of a bin side by side, and so are grad and winner.
template <typename S, typename Index>
void add_gradients(
    const Call& call, const std::vector<at::Tensor>& maps, const S* grad, const Index* winner,
    accumulation_t<S>* grad_rois, accumulation_t<S>* grad_offsets) {
  using A = accumulation_t<S>;
  const Rois<A> rois(call);
  const Options& options = call.options;
  const Method& method = options.method;
  const int height = options.pooled_height, width = options.pooled_width;
  const int64_t bins = options.bins(), channels = call.output_channels(), numbers = call.rois.size(1);
  at::parallel_for(0, call.num_rois(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      if (rois.state(k) != RoiState::read) continue;
      const A scale = rois.scale(k);
      const at::Tensor& map = maps[rois.level(k)];
      const S* const image = map.const_data_ptr<S>() + rois.image_offset(k);
      for (int64_t b = 0; b < bins; ++b) {
        const int p = int(b / width), q = int(b % width);
        const BinProducts<S, Index> products{
            grad + (k * bins + b) * channels,
            winner == nullptr ? nullptr : winner + (k * bins + b) * channels,
            image + (call.groups() > 1 ? b * channels : 0), rois.width(k) * call.channels(),
            call.channels(), channels};
        A* const box = grad_rois + (k * bins + b) * numbers + 1;
        if (call.rotated()) {
          rotated_bin_gradient(
              method, !options.max, rois.rotated_box(k), p, q, height, width, scale, products, box);
          continue;
        }
        const Offset<A> offset = rois.offset(k, p, q);
        if (!offset.is_finite()) continue;
        A by_offset[2] = {};
        upright_bin_gradient(
            method, !options.max, moved(rois.y_axis(k), offset.y), moved(rois.x_axis(k), offset.x), p,
            q, height, width, scale, offset, products, box, by_offset);
        if (grad_offsets == nullptr) continue;
        grad_offsets[2 * k * bins + b] = by_offset[0];
        grad_offsets[(2 * k + 1) * bins + b] = by_offset[1];
      }
    }
  });
}

}  // namespace

void backward_rois_cpu(
    const Call& call, const at::Tensor& grad, const at::Tensor& winner, at::TensorList features,
    at::Tensor& grad_rois, at::Tensor& grad_offsets) {
  constexpr auto format = at::MemoryFormat::ChannelsLast;
  const at::Tensor read = grad.contiguous(format);
  const at::Tensor winners = call.options.max ? winner.contiguous(format) : winner;
  std::vector<at::Tensor> maps;
  for (const at::Tensor& map : features) maps.push_back(readable(call, map, format));
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, grad.scalar_type(), "roi_gradient", [&] {
    using A = accumulation_t<scalar_t>;
    A* const offsets = grad_offsets.defined() ? grad_offsets.data_ptr<A>() : nullptr;
    const auto run = [&](auto* winner_data) {
      add_gradients(
          call, maps, read.const_data_ptr<scalar_t>(), winner_data, grad_rois.data_ptr<A>(), offsets);
    };
    if (!call.options.max) {
      run(static_cast<const uint8_t*>(nullptr));
    } else if (call.options.winner_type() == at::kByte) {
      run(winners.const_data_ptr<uint8_t>());
    } else {
      run(winners.const_data_ptr<int32_t>());
    }
  });
}

}  // namespace roi_plugins
