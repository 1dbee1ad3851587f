// Forward and backward on the CPU: the loops over RoIs and channels, for any reduction (docs/kernels.md).
//
// In both layouts a vector is a run of channels of one cell. In channels_last they lie side by side. In NCHW, patches
// of the map are transposed into scratch memory, a block of channels at a time, and the bins are transposed back; the
// code between is the same. Backward runs in parallel over rows of maps in channels_last, and over channels in NCHW, so
// no two threads write to one cell and the sums do not depend on the number of threads.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <atomic>
#include <cstring>
#include <tuple>

#include "../maximum.h"
#include "../results.h"
#include "per_bin.h"
#include "loops.h"
#include "memory.h"
#include "separable.h"
#include "rois.h"

namespace roi_plugins {
namespace {

// The threads that a call is worth waking: a tiny one takes less time than that.
int64_t useful_threads(const Call& call) {
  const int64_t elements = call.num_rois() * call.output_channels() * call.options.bins();
  return std::min<int64_t>(at::get_num_threads(), elements / at::internal::GRAIN_SIZE + 1);
}

// Where a RoI stands in the order in which they are visited: by image of a map, then along bands of rows, to and fro, so
// that neighbours in the order share cells that are still in a cache.
struct Visit {
  int64_t map_and_image;
  int band, column;
  int64_t roi;

  static constexpr int kBand = 16;  // rows
  template <typename Tables>
  Visit(int64_t map_and_image, const Tables& tables, int64_t roi)
      : map_and_image(map_and_image), band(middle(tables.rows()) / kBand), column(middle(tables.columns())), roi(roi) {
    if (band % 2 != 0) column = -column;
  }
  static int middle(const CellRange& cells) { return cells.first() + cells.count() / 2; }
  bool operator<(const Visit& other) const {
    return std::tie(map_and_image, band, column, roi) <
        std::tie(other.map_and_image, other.band, other.column, other.roi);
  }
};

// Made once for all channels: the tables of the RoIs that read something, and the order in which they are visited.
template <typename Reduction>
struct Plan {
  std::vector<typename Reduction::Tables> tables;
  std::vector<int64_t> order, unread;

  explicit Plan(const Rois<typename Reduction::A>& rois) : tables(rois.call.num_rois()) {
    at::parallel_for(0, int64_t(tables.size()), 16, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        if (rois.state(k) == RoiState::read) tables[k].resolve(rois, k);
      }
    });
    std::vector<Visit> visits;
    visits.reserve(tables.size());
    for (int64_t k = 0; k < rois.call.num_rois(); ++k) {
      if (tables[k].is_empty()) {
        unread.push_back(k);
      } else {
        visits.emplace_back(rois.map_and_image(k), tables[k], k);
      }
    }
    std::sort(visits.begin(), visits.end());
    order.reserve(visits.size());
    for (const Visit& visit : visits) order.push_back(visit.roi);
  }
  // Calls work(begin, end) for each image of a map: its RoIs are order[begin] .. order[end - 1].
  template <typename Work>
  void for_each_image(const Rois<typename Reduction::A>& rois, Work&& work) const {
    const int64_t count = int64_t(order.size());
    for (int64_t begin = 0, end; begin < count; begin = end) {
      for (end = begin + 1; end < count; ++end) {
        if (rois.map_and_image(order[end]) != rois.map_and_image(order[begin])) break;
      }
      work(begin, end);
    }
  }
};

// What fits a cache: 4 MiB of float32.
constexpr int64_t kPatchElements = 1 << 20;

// A window of an image for the RoIs order[begin] .. order[end - 1]. It is copied into scratch memory, where the
// channels of a cell lie side by side.
struct Patch {
  int64_t begin, end;
  CellRange y, x;
  int64_t width, plane;  // of the map: cells of a row, and of all rows
  int64_t first_column, columns;

  // The transposes take eight columns at a time, so a patch is widened to a multiple where the map allows it.
  void place(int64_t map_height, int64_t map_width) {
    width = map_width;
    plane = map_height * map_width;
    first_column = x.first();
    columns = x.count();
    const int64_t wide = (columns + 7) / 8 * 8;
    if (wide > width) return;
    columns = wide;
    first_column = std::min(first_column, width - wide);
  }
  // Whether it serves all RoIs of its image, and so holds all their sums. Otherwise patches may overlap.
  bool is_shared() const { return end > begin + 1; }
  int64_t cells() const { return y.count() * columns; }
  // Of a block of channels, how many are copied at once. With fewer than 16 the runs would be too short. There may be
  // no cells: bins that were moved to nowhere are written all the same.
  int64_t channels_at_once(int64_t block) const {
    const int64_t fit = kPatchElements / std::max(cells(), int64_t(1));
    return std::min(std::max(fit / 16, int64_t(1)) * 16, block);
  }
  // Where a cell of the map is in the patch.
  int64_t cell(int64_t i, int64_t j) const {
    return (i - y.first()) * columns + j - first_column;
  }
};

// The patches to visit, in order: one for each RoI, but one for all RoIs of an image where that is smaller.
template <typename Reduction>
std::vector<Patch> make_patches(
    const Rois<typename Reduction::A>& rois, const Plan<Reduction>& plan) {
  std::vector<Patch> patches;
  plan.for_each_image(rois, [&](int64_t begin, int64_t end) {
    int64_t cells = 0;
    const size_t separate = patches.size();
    for (int64_t r = begin; r < end; ++r) {
      const int64_t k = plan.order[r];
      patches.push_back({r, r + 1, plan.tables[k].rows(), plan.tables[k].columns()});
      patches.back().place(rois.height(k), rois.width(k));
      cells += patches.back().cells();
    }
    if (end == begin + 1) return;
    Patch shared{begin, end};
    for (size_t p = separate; p < patches.size(); ++p) {
      shared.y.add(patches[p].y);
      shared.x.add(patches[p].x);
    }
    shared.place(rois.height(plan.order[begin]), rois.width(plan.order[begin]));
    if (shared.cells() < cells) {
      patches.resize(separate);
      patches.push_back(shared);
    }
  });
  return patches;
}

// The channels in which a thread works on patches. Long runs are worth more than fewer cache misses, but every thread
// gets a block.
int64_t block_size(int64_t channels, int64_t threads) {
  const int64_t most = 128 * threads;
  const int64_t blocks = threads * ((channels + most - 1) / most);
  return ((channels + blocks - 1) / blocks + 7) / 8 * 8;
}

// The output of RoIs that read nothing.
template <typename Reduction, typename S, typename A, typename Index>
void fill_unread(const Rois<A>& rois, const Plan<Reduction>& plan, S* output, Index* argmax) {
  const int64_t size = rois.call.output_channels() * rois.call.options.bins();
  for (const int64_t k : plan.unread) {
    std::fill_n(output + k * size, size, S(unread_value<A>(rois.state(k))));
    if (argmax != nullptr) std::fill_n(argmax + k * size, size, kNoSample);
  }
}

template <typename Reduction, typename S>
void forward_channels_last(
    const Call& call, at::TensorList maps, S* output, typename Reduction::Index* argmax) {
  const Rois<typename Reduction::A> rois(call);
  const Plan<Reduction> plan(rois);
  const int64_t channels = call.output_channels(), size = channels * call.options.bins();
  fill_unread(rois, plan, output, argmax);
  const int64_t count = int64_t(plan.order.size()), threads = useful_threads(call);
  at::parallel_for(0, count, (count + threads - 1) / threads, [&](int64_t begin, int64_t end) {
    Reduction reduction;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t k = plan.order[i], width = rois.width(k);
      const typename Reduction::Tables& tables = plan.tables[k];
      const at::Tensor& map = maps[rois.level(k)];
      const int64_t first = tables.rows().first() * width + tables.columns().first();
      reduction.forward(
          tables, output + k * size, argmax == nullptr ? nullptr : argmax + k * size,
          map.const_data_ptr<S>() + rois.image_offset(k) + first * call.channels(),
          width * call.channels(), channels);
    }
  });
}

template <typename Reduction, typename S>
void forward_planes(
    const Call& call, at::TensorList maps, S* output, typename Reduction::Index* argmax) {
  const Rois<typename Reduction::A> rois(call);
  const Plan<Reduction> plan(rois);
  const std::vector<Patch> patches = make_patches(rois, plan);
  const int64_t channels = call.channels(), bins = call.options.bins();
  const int64_t threads = useful_threads(call);
  const int64_t size = block_size(channels, threads), blocks = (channels + size - 1) / size;
  fill_unread(rois, plan, output, argmax);
  // RoIs share cells, so a thread takes all RoIs of its channels, unless there are fewer blocks than threads.
  const int64_t parts = std::max(threads / blocks, int64_t(1));
  const int64_t part = (int64_t(plan.order.size()) + parts - 1) / parts;
  at::parallel_for(0, blocks * parts, 1, [&](int64_t begin, int64_t end) {
    Reduction reduction;
    Scratch<S> memory, row_memory;
    Scratch<typename Reduction::Index> argmax_memory;
    S* const rows = row_memory.at_least(size * bins);
    auto* const argmaxes = argmax_memory.at_least(size * bins);
    for (int64_t t = begin; t < end; ++t) {
      const int64_t begin_channel = t / parts * size;
      const int64_t end_channel = std::min(begin_channel + size, channels);
      for (const Patch& patch : patches) {
        const int64_t first_roi = std::max(patch.begin, t % parts * part);
        const int64_t last_roi = std::min(patch.end, (t % parts + 1) * part);
        if (first_roi >= last_roi) continue;
        const int64_t one = plan.order[patch.begin];
        const at::Tensor& map = maps[rois.level(one)];
        const S* const image = map.const_data_ptr<S>() + rois.image_offset(one) + patch.first_column;
        const int64_t step = patch.channels_at_once(size);
        S* const cells = memory.at_least(patch.cells() * step);
        for (int64_t first = begin_channel; first < end_channel; first += step) {
          const int64_t n = std::min(step, end_channel - first);
          const S* const from = image + first * patch.plane;
          patch.y.for_runs([&](int run, int run_end) {
            for (int64_t i = run; i < run_end; ++i) {
              transpose<false>(
                  cells + i * patch.columns * n, n,
                  from + (patch.y.first() + i) * patch.width, patch.plane, n, patch.columns);
            }
          });
          for (int64_t r = first_roi; r < last_roi; ++r) {
            const int64_t k = plan.order[r], offset = (k * channels + first) * bins;
            const typename Reduction::Tables& tables = plan.tables[k];
            reduction.forward(
                tables, rows, argmaxes,
                cells + patch.cell(tables.rows().first(), tables.columns().first()) * n,
                patch.columns * n, n);
            transpose<false>(output + offset, bins, rows, n, bins, n);
            if constexpr (Reduction::has_argmax) {
              transpose<false>(argmax + offset, bins, argmaxes, n, bins, n);
            }
          }
        }
      }
    }
  });
}

// Brings a patch of sums of n channels into their planes, which were zeros at first.
template <typename A>
void store_patch(A* planes, const A* cells, const Patch& patch, int64_t n) {
  patch.y.for_runs([&](int begin, int end) {
    for (int64_t i = begin; i < end; ++i) {
      const A* const from = cells + i * patch.columns * n;
      A* const to = planes + (patch.y.first() + i) * patch.width + patch.first_column;
      if (patch.is_shared()) {
        transpose<false>(to, patch.plane, from, n, patch.columns, n);
      } else {
        transpose<true>(to, patch.plane, from, n, patch.columns, n);
      }
    }
  });
}

template <typename Reduction, typename S>
void backward_planes(
    const Call& call, const S* grad, const typename Reduction::Index* argmax,
    const std::vector<typename Reduction::A*>& sums) {
  using A = typename Reduction::A;
  using Index = typename Reduction::Index;
  const Rois<A> rois(call);
  const Plan<Reduction> plan(rois);
  const std::vector<Patch> patches = make_patches(rois, plan);
  const int64_t channels = call.channels(), bins = call.options.bins();
  const int64_t threads = useful_threads(call);
  const int64_t size = block_size(channels, threads), blocks = (channels + size - 1) / size;
  at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    Reduction reduction;
    Scratch<A> memory;
    Scratch<S> grad_memory;
    Scratch<Index> argmax_memory;
    S* const grads = grad_memory.at_least(size * bins);
    Index* const argmaxes = argmax_memory.at_least(size * bins);
    const int64_t begin_channel = begin * size, end_channel = std::min(end * size, channels);
    for (const Patch& patch : patches) {
      const int64_t one = plan.order[patch.begin];
      A* const image = sums[rois.level(one)] + rois.image_offset(one);
      const int64_t step = patch.channels_at_once(size);
      A* const cells = memory.at_least(patch.cells() * step);
      for (int64_t first = begin_channel; first < end_channel; first += step) {
        const int64_t n = std::min(step, end_channel - first);
        patch.y.for_runs([&](int run, int run_end) {
          std::fill(cells + run * patch.columns * n, cells + run_end * patch.columns * n, A(0));
        });
        for (int64_t r = patch.begin; r < patch.end; ++r) {
          const int64_t k = plan.order[r], offset = (k * channels + first) * bins;
          const typename Reduction::Tables& tables = plan.tables[k];
          transpose<false>(grads, n, grad + offset, bins, n, bins);
          if constexpr (Reduction::has_argmax) {
            transpose<false>(argmaxes, n, argmax + offset, bins, n, bins);
          }
          reduction.backward(
              tables, cells + patch.cell(tables.rows().first(), tables.columns().first()) * n,
              patch.columns * n, n, {grads, n}, {argmaxes, n}, n,
              {0, tables.rows().count()});
        }
        store_patch(image + first * patch.plane, cells, patch, n);
      }
    }
  });
}

// Rows [first, last) of an image of a map, and its RoIs order[begin] .. order[end - 1].
struct Band {
  int64_t begin, end;
  int first, last;
};

// Several bands for each thread, since some have more RoIs than others.
template <typename Reduction>
std::vector<Band> make_bands(
    const Rois<typename Reduction::A>& rois, const Plan<Reduction>& plan, int64_t threads) {
  std::vector<Band> bands;
  const int wanted = int(4 * threads);  // of an image
  plan.for_each_image(rois, [&](int64_t begin, int64_t end) {
    const int height = rois.height(plan.order[begin]), rows = (height + wanted - 1) / wanted;
    for (int row = 0; row < height; row += rows) {
      bands.push_back({begin, end, row, std::min(row + rows, height)});
    }
  });
  return bands;
}

// With all channels, so that the gradient of a bin is read in one run.
template <typename Reduction, typename S>
void backward_channels_last(
    const Call& call, const S* grad, const typename Reduction::Index* argmax,
    const std::vector<typename Reduction::A*>& sums) {
  using A = typename Reduction::A;
  const Rois<A> rois(call);
  const Plan<Reduction> plan(rois);
  const int64_t threads = useful_threads(call);
  const std::vector<Band> bands = make_bands(rois, plan, threads);
  const int64_t channels = call.output_channels(), size = channels * call.options.bins();
  const int64_t stride = call.channels();
  std::atomic<size_t> next{0};
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    Reduction reduction;
    for (size_t b; (b = next++) < bands.size();) {
      const Band& band = bands[b];
      for (int64_t r = band.begin; r < band.end; ++r) {
        const int64_t k = plan.order[r], width = rois.width(k);
        const typename Reduction::Tables& tables = plan.tables[k];
        const int first = tables.rows().first();
        const RowRange within{
            std::max(band.first - first, 0), std::min(band.last - first, tables.rows().count())};
        if (within.begin >= within.end) continue;
        reduction.backward(
            tables,
            sums[rois.level(k)] + rois.image_offset(k) + (first * width + tables.columns().first()) * stride,
            width * stride, stride, {grad + k * size, channels},
            {argmax == nullptr ? nullptr : argmax + k * size, channels}, channels, within);
      }
    }
  });
}

// Calls work(S(), Reduction) with the element type and the reduction of a call.
template <typename Work>
void dispatch(const Call& call, at::ScalarType type, Work&& work) {
  const bool single_bins = call.has_single_bins();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, type, "roi_extract", [&] {
    if (!call.options.max) {
      single_bins ? work(scalar_t(), BinAverage<scalar_t>()) : work(scalar_t(), Average<scalar_t>());
    } else if (call.options.argmax_type() == at::kByte) {
      single_bins ? work(scalar_t(), BinMaximum<scalar_t, uint8_t>())
                  : work(scalar_t(), Maximum<scalar_t, uint8_t>());
    } else {
      single_bins ? work(scalar_t(), BinMaximum<scalar_t, int32_t>())
                  : work(scalar_t(), Maximum<scalar_t, int32_t>());
    }
  });
}

// Where each bin reads channels of its own, those have to lie side by side.
Call in_working_layout(Call call) {
  call.channels_last = call.channels_last || call.groups() > 1;
  return call;
}

// zero_(), whose way through the dispatcher takes a noticeable part of a small call, for large tensors only.
void zero(at::Tensor& tensor) {
  if (tensor.nbytes() < 1 << 16) {
    std::memset(tensor.mutable_data_ptr(), 0, tensor.nbytes());
  } else {
    tensor.zero_();
  }
}

}  // namespace

void forward_cpu(
    const Call& given, at::TensorList features, at::Tensor& output, at::Tensor& argmax) {
  const Call call = in_working_layout(given);
  at::Tensor result = output.contiguous(call.format());
  std::vector<at::Tensor> maps;
  for (const at::Tensor& map : features) maps.push_back(readable(call, map, call.format()));
  dispatch(call, output.scalar_type(), [&](auto element, auto reduction) {
    using S = decltype(element);
    using Reduction = decltype(reduction);
    typename Reduction::Index* argmaxes = nullptr;
    if constexpr (Reduction::has_argmax) {
      argmaxes = argmax.data_ptr<typename Reduction::Index>();
    }
    if (call.channels_last) {
      forward_channels_last<Reduction>(call, maps, result.data_ptr<S>(), argmaxes);
    } else {
      forward_planes<Reduction>(call, maps, result.data_ptr<S>(), argmaxes);
    }
  });
  if (!result.is_same(output)) output.copy_(result);
}

std::vector<at::Tensor> backward_cpu(
    const Call& given, const at::Tensor& grad, const at::Tensor& argmax) {
  const Call call = in_working_layout(given);
  const at::Tensor read = grad.contiguous(call.format());
  std::vector<at::Tensor> maps;
  for (int64_t l = 0; l < call.num_levels(); ++l) {
    maps.push_back(new_result(
        {call.images(), call.channels(), call.height(l), call.width(l)},
        grad.options().dtype(accumulation_type(grad.scalar_type())), call.format()));
    zero(maps.back());
  }
  dispatch(call, grad.scalar_type(), [&](auto element, auto reduction) {
    using S = decltype(element);
    using Reduction = decltype(reduction);
    std::vector<typename Reduction::A*> sums;
    for (at::Tensor& map : maps) sums.push_back(map.data_ptr<typename Reduction::A>());
    const typename Reduction::Index* argmaxes = nullptr;
    if constexpr (Reduction::has_argmax) {
      argmaxes = argmax.const_data_ptr<typename Reduction::Index>();
    }
    if (call.channels_last) {
      backward_channels_last<Reduction>(call, read.const_data_ptr<S>(), argmaxes, sums);
    } else {
      backward_planes<Reduction>(call, read.const_data_ptr<S>(), argmaxes, sums);
    }
  });
  for (at::Tensor& map : maps) {
    if (map.scalar_type() != grad.scalar_type()) map = map.to(grad.scalar_type());
    if (call.groups() == 1) continue;
    map = map.unflatten(1, {call.groups(), call.output_channels()})
              .transpose(1, 2)
              .flatten(1, 2)
              .contiguous(given.format());
  }
  return maps;
}

}  // namespace roi_plugins
