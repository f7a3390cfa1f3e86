// ONNX convolution over 1 to 3 spatial dimensions with a tiled binary weight.
//
// Three ways, chosen by cost. Lookup, for many distinct rows a group: tables of partial sums are
// built once an input pixel and every kernel tap reads them. Direct: few inputs or rows, or several
// scales in a row; vectors lie along the output width. Depthwise, for one output a group: vectors
// lie across groups.
#pragma once

#include "layer.h"

namespace tbn {

class Conv {
 public:
  // `weight_shape` is [outputs, channels / groups, kernel...].
  Conv(const std::vector<std::int64_t>& weight_shape, std::int64_t groups, const Tiling& tiling,
       const KernelSet& kernels);

  // Bytes `prepare` fills; the memory must outlive every run.
  std::int64_t memory() const;
  void prepare(const Parameters& parameters, void* memory);

  // How one call is cut into units that may run in any order and at once.
  struct Schedule {
    std::int64_t strip_rows;  // output rows a unit
    std::int64_t strips;
    std::int64_t groups;  // that a unit takes in turn
    std::int64_t units;
    std::int64_t workspace;  // bytes each unit needs while it runs
  };
  Schedule schedule(const ConvGeometry& geometry, std::int64_t threads) const;
  void run(const Call& call, const ConvGeometry& geometry, const Schedule& schedule,
           std::int64_t unit, void* workspace) const;

 private:
  static constexpr std::int64_t direct_block = 8;  // rows of weights expanded at a time

  struct Strip;
  struct LookupSpace;
  struct DirectSpace;
  struct DepthwiseSpace;
  enum class Method { lookup, direct, depthwise };
  void carve(Carver& carver);
  std::int64_t image_of(std::int64_t group) const { return group % images_; }
  std::int64_t chunk_codes() const { return blocks() * chunk_words_ * block_rows; }
  std::int64_t blocks() const { return divide_up(distinct_, block_rows); }
  std::int64_t pixel_floats() const { return chunk_groups_ * kernels_->table_floats(); }
  std::int64_t groups_in_chunk(std::int64_t chunk) const;
  LookupSpace lookup_space(Carver& carver, const ConvGeometry& geometry, std::int64_t rows) const;
  DirectSpace direct_space(Carver& carver, const ConvGeometry& geometry, std::int64_t rows) const;
  std::int64_t workspace(const ConvGeometry& geometry, std::int64_t rows) const;
  void build_tables(const Call& call, const Strip& strip, std::int64_t chunk,
                    const LookupSpace& space) const;
  void run_lookup(const Call& call, const Strip& strip, const LookupSpace& space) const;
  DepthwiseSpace depthwise_space(Carver& carver, const ConvGeometry& geometry,
                                 std::int64_t rows) const;
  void run_depthwise(const Call& call, Strip strip, std::int64_t end_group,
                     const DepthwiseSpace& space) const;
  void interleave_groups(const Call& call, const Strip& strip, std::int64_t groups,
                         const DepthwiseSpace& space) const;
  void run_direct(const Call& call, Strip strip, std::int64_t end_group,
                  const DirectSpace& space) const;
  void copy_inputs(const Call& call, const Strip& strip, const DirectSpace& space) const;
  void find_taps(const Strip& strip, const DirectSpace& space) const;
  void expand_rows(const std::uint8_t* tile, std::int64_t first_row, std::int64_t rows,
                   float* weights) const;
  void finish(const Call& call, const Strip& strip, std::int64_t row, const float* sums) const;

  Tiling tiling_;
  const KernelSet* kernels_;
  std::int64_t outputs_;   // of one group
  std::int64_t channels_;  // of one group
  std::int64_t taps_;
  std::int64_t groups_;
  std::int64_t distinct_;  // rows of one group
  Method method_;
  bool scaled_weights_;            // scales change inside a row, so weights carry them
  std::int64_t images_ = 1;        // groups whose packed signs differ
  std::int64_t table_groups_ = 0;  // tables a pixel
  std::int64_t chunks_ = 0;        // a pixel's tables are built and used in so many turns
  std::int64_t chunk_groups_ = 0;
  std::int64_t chunk_words_ = 0;
  std::uint32_t* codes_ = nullptr;  // [image][chunk][block][word][lane]
  float* scales_ = nullptr;         // as stored
  float* output_scale_ = nullptr;   // [all outputs]
};

}  // namespace tbn
