// The gradients of boxes and offsets on the CPU: for each bin, a few dot products over channels.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include "../box_gradient.h"
#include "loops.h"
#include "rois.h"

namespace roi_plugins {
namespace {

// The dot products of a bin's gradient with the cells of its map; channels lie side by side.
template <typename S, typename Index>
struct BinProducts {
  const S* grad;
  const Index* argmax;  // nullptr for an average
  const S* map;         // of the image, at the bin's first channel
  int64_t row_stride, stride, channels;

  template <typename A = accumulation_t<S>>
  A operator()(int64_t sample, int row, int column) const {
    const S* const cell = map + row * row_stride + column * stride;
    if (argmax == nullptr) return dot(grad, cell, channels);
    A sum = 0;
    for (int64_t c = 0; c < channels; ++c) {
      if (argmax[c] == Index(sample)) sum += A(grad[c]) * A(cell[c]);
    }
    return sum;
  }
};

// `maps`, `grad` and `argmax` are channels_last.
template <typename S, typename Index>
void add_gradients(
    const Call& call, const std::vector<at::Tensor>& maps, const S* grad, const Index* argmax,
    accumulation_t<S>* grad_rois, accumulation_t<S>* grad_offsets) {
  using A = accumulation_t<S>;
  const Rois<A> rois(call);
  const Options& options = call.options;
  const int64_t bins = options.bins(), channels = call.output_channels(), roi_dim = call.rois.size(1);
  at::parallel_for(0, call.num_rois(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      if (rois.state(k) != RoiState::read) continue;
      const A scale = rois.scale(k);
      const at::Tensor& map = maps[rois.level(k)];
      const S* const image = map.const_data_ptr<S>() + rois.image_offset(k);
      for (int64_t b = 0; b < bins; ++b) {
        const BinProducts<S, Index> products{
            grad + (k * bins + b) * channels,
            argmax == nullptr ? nullptr : argmax + (k * bins + b) * channels,
            image + (call.groups() > 1 ? b * channels : 0), rois.width(k) * call.channels(),
            call.channels(), channels};
        A* const box = grad_rois + (k * bins + b) * roi_dim + 1;
        bin_gradient(
            options.method, !options.max, call.rotated(), rois, k, b, options.pooled_height, options.pooled_width,
            scale, products, box, grad_offsets);
      }
    }
  });
}

}  // namespace

void backward_rois_cpu(
    const Call& call, const at::Tensor& grad, const at::Tensor& argmax, at::TensorList features,
    at::Tensor& grad_rois, at::Tensor& grad_offsets) {
  constexpr auto format = at::MemoryFormat::ChannelsLast;
  const at::Tensor read = grad.contiguous(format);
  const at::Tensor argmaxes = call.options.max ? argmax.contiguous(format) : argmax;
  std::vector<at::Tensor> maps;
  for (const at::Tensor& map : features) maps.push_back(readable(call, map, format));
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, grad.scalar_type(), "roi_gradient", [&] {
    using A = accumulation_t<scalar_t>;
    A* const offsets = grad_offsets.defined() ? grad_offsets.data_ptr<A>() : nullptr;
    const auto run = [&](auto* argmax_data) {
      add_gradients(
          call, maps, read.const_data_ptr<scalar_t>(), argmax_data, grad_rois.data_ptr<A>(), offsets);
    };
    if (!call.options.max) {
      run(static_cast<const uint8_t*>(nullptr));
    } else if (call.options.argmax_type() == at::kByte) {
      run(argmaxes.const_data_ptr<uint8_t>());
    } else {
      run(argmaxes.const_data_ptr<int32_t>());
    }
  });
}

}  // namespace roi_plugins
