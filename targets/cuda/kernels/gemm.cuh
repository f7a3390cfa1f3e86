#ifndef TBN_GEMM
#define TBN_GEMM

namespace tbn {

__device__ __forceinline__ void load_columns(unsigned (&b)[4], unsigned address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
               : "r"(address)
               : "memory");
}

// How x reaches the tensor cores: 16-bit types as they are, float32 as three bfloat16 parts that
// together hold its 24 bits.
template <typename T>
struct Staged {
  using Type = T;
  using Raw = unsigned short;
  using Held = unsigned;  // a Raw in a register
  static constexpr int kParts = 1;

  static __device__ __forceinline__ void split(uint4 (&parts)[1], const Held (&raw)[8]) {
    unsigned* words = &parts[0].x;
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] = __byte_perm(raw[2 * i], raw[2 * i + 1], 0x5410);
  }
};

template <>
struct Staged<float> {
  using Type = __nv_bfloat16;
  using Raw = float;
  using Held = float;
  static constexpr int kParts = 3;

  static __device__ __forceinline__ void split(uint4 (&parts)[3], const Held (&raw)[8]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float low = raw[2 * i], high = raw[2 * i + 1];
#pragma unroll
      for (int part = 0; part < 3; ++part)
        (&parts[part].x)[i] = take_upper_halves(low, high);
    }
  }
};

// Zero where it is not wanted. Not a load of constants: the kernel ahead may have just written x.
__device__ __forceinline__ void load_if(bool wanted, unsigned& value, const unsigned short* source) {
  asm volatile(
      "{\n.reg .pred wanted;\nsetp.ne.b32 wanted, %2, 0;\nmov.b32 %0, 0;\n"
      "@wanted ld.global.u16 %0, [%1];\n}"
      : "=r"(value)
      : "l"(source), "r"(static_cast<int>(wanted))
      : "memory");
}

__device__ __forceinline__ void load_if(bool wanted, float& value, const float* source) {
  asm volatile(
      "{\n.reg .pred wanted;\nsetp.ne.b32 wanted, %2, 0;\nmov.b32 %0, 0f00000000;\n"
      "@wanted ld.global.f32 %0, [%1];\n}"
      : "=f"(value)
      : "l"(source), "r"(static_cast<int>(wanted))
      : "memory");
}

__device__ __forceinline__ void load_four_if(bool wanted, float (&values)[8], int at,
                                             const float* source) {
  asm volatile(
      "{\n.reg .pred wanted;\nsetp.ne.b32 wanted, %5, 0;\nmov.b32 %0, 0f00000000;\n"
      "mov.b32 %1, 0f00000000;\nmov.b32 %2, 0f00000000;\nmov.b32 %3, 0f00000000;\n"
      "@wanted ld.global.v4.f32 {%0, %1, %2, %3}, [%4];\n}"
      : "=f"(values[at]), "=f"(values[at + 1]), "=f"(values[at + 2]), "=f"(values[at + 3])
      : "l"(source), "r"(static_cast<int>(wanted))
      : "memory");
}

template <int kCount>
__device__ __forceinline__ void load_floats(float (&values)[kCount], const float* source) {
  if constexpr (kCount == 1) {
    values[0] = *source;
  } else {
#pragma unroll
    for (int i = 0; i < kCount; i += 4)
      *reinterpret_cast<float4*>(values + i) = *reinterpret_cast<const float4*>(source + i);
  }
}

template <typename T, int kCount>
__device__ __forceinline__ void store_values(T* target, const float (&values)[kCount]) {
  if constexpr (kCount == 1) {
    *target = T(values[0]);
  } else if constexpr (kCount == 4) {
    *reinterpret_cast<float4*>(target) = make_float4(values[0], values[1], values[2], values[3]);
  } else {
    uint4 packed;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      (&packed.x)[i] = Element<T>::pack(values[2 * i], values[2 * i + 1]);
    *reinterpret_cast<uint4*>(target) = packed;
  }
}

// x[columns][inputs] and y[columns][copies * rows]: a Gemm, whose columns are the rows of x.
template <typename T_, bool kAlignedInputs, bool kAlignedRows>
struct Matrix {
  using T = T_;
  using Raw = typename Staged<T>::Raw;
  using Held = typename Staged<T>::Held;
  static constexpr bool kCopied = kAlignedInputs && Staged<T>::kParts == 1;
  static constexpr int kRun = kAlignedRows ? 16 / sizeof(T) : 1;  // elements per store

  int rows, copies, columns, inputs;
  const T* x;
  T* y;

  // Floats of shared memory for the sums of a pass.
  static constexpr int sums(int tile_rows, int columns) { return columns * (tile_rows + 4); }

  // Where the sum of a tile's row and a pass's column waits to be stored.
  template <typename Kernel>
  static __device__ __forceinline__ int place(int row, int column) {
    return column * (Kernel::kTileRows + 4) + row;
  }

  __device__ __forceinline__ void begin(int) {}

  // The run of eight inputs that this thread brings in its turn `unit`.
  template <typename Kernel>
  static __device__ __forceinline__ int2 run_of(int unit) {
    constexpr int kRuns = Kernel::kStageInputs / 8;
    const int at = threadIdx.x + unit * Kernel::kThreads;
    return make_int2(at / kRuns, at % kRuns);
  }

  template <typename Kernel>
  __device__ __forceinline__ void copy(unsigned target, int column, int input) const {
#pragma unroll
    for (int unit = 0; unit < Kernel::kUnits; ++unit) {
      const int2 run = run_of<Kernel>(unit);
      const int line = column + run.x, first = input + run.y * 8;
      const bool inside = line < columns && first < inputs;
      const T* source = x + (inside ? static_cast<size_t>(line) * inputs + first : 0);
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                       target + run.x * Kernel::kPitch + run.y * 16),
                   "l"(source), "r"(inside ? 16 : 0)
                   : "memory");
    }
  }

  template <typename Kernel>
  __device__ __forceinline__ void fetch(Held (&raw)[Kernel::kUnits][8], int column,
                                        int input) const {
#pragma unroll
    for (int unit = 0; unit < Kernel::kUnits; ++unit) {
      const int2 run = run_of<Kernel>(unit);
      const int line = column + run.x, first = input + run.y * 8;
      const Raw* source =
          reinterpret_cast<const Raw*>(x) + static_cast<size_t>(line) * inputs + first;
      const int count = line < columns ? inputs - first : 0;
      if constexpr (kAlignedInputs) {
#pragma unroll
        for (int i = 0; i < 8; i += 4) load_four_if(i < count, raw[unit], i, source + i);
      } else {
#pragma unroll
        for (int i = 0; i < 8; ++i) load_if(i < count, raw[unit][i], source + i);
      }
    }
  }

  template <typename Kernel>
  __device__ __forceinline__ void store(const float* sums, const float* scale, const float* bias,
                                        int first_row, int first_column, int pass) const {
    constexpr int kRuns = Kernel::kTileRows / kRun;
    const int local = threadIdx.x % kRuns * kRun, row = first_row + local;
    if (row >= rows) return;
    for (int copy = 0; copy < copies; ++copy) {
      const int output = copy * rows + row;
      float scales[kRun], biases[kRun];
      load_floats(scales, scale + output);
      load_floats(biases, bias + output);
#pragma unroll 4
      for (int at = threadIdx.x / kRuns; at < Kernel::kPassColumns;
           at += Kernel::kThreads / kRuns) {
        const int column = first_column + Kernel::column_of(at, pass);
        if (column >= columns) break;
        float values[kRun];
        load_floats(values, sums + place<Kernel>(local, at));
#pragma unroll
        for (int i = 0; i < kRun; ++i)
          values[i] = Kernel::Activation::apply(fmaf(values[i], scales[i], biases[i]));
        store_values(y + static_cast<size_t>(column) * copies * rows + output, values);
      }
    }
  }
};

// x[n][channels][height][width] and y[n][copies * rows][positions]: a convolution, whose columns are
// the positions of all images, and whose inputs count the places of the window, then channels.
template <typename T_, bool kWholeTaps, bool kAlignedPositions>
struct Images {
  using T = T_;
  using Raw = typename Staged<T>::Raw;
  using Held = typename Staged<T>::Held;
  static constexpr bool kCopied = false;
  static constexpr int kRun = kAlignedPositions ? 16 / sizeof(T) : 1;  // elements per store
  static constexpr int kTapRun = kWholeTaps ? 8 : 1;  // inputs that surely share a place in the window

  int rows, copies, columns, inputs;
  const T* x;
  T* y;
  int channels, height, width, positions, row_positions, kernel_rows, kernel_columns;
  int row_stride, column_stride, row_dilation, column_dilation, row_pad, column_pad;

  static constexpr int sums(int tile_rows, int columns) { return tile_rows * (columns + 8); }

  template <typename Kernel>
  static __device__ __forceinline__ int place(int row, int column) {
    return row * (Kernel::kPassColumns + 8) + column;
  }

  // Set by begin(): the image of this thread's column, and the top left of its window, far outside
  // where there is no such column.
  const Raw* image;
  int top, left;

  __device__ __forceinline__ void begin(int column) {
    const int index = min(column, columns - 1) / positions;
    const int position = min(column, columns - 1) - index * positions;
    image = reinterpret_cast<const Raw*>(x) +
            static_cast<size_t>(index) * channels * height * width;
    const int row = position / row_positions;
    top = column < columns ? row * row_stride - row_pad : 1 << 30;
    left = (position - row * row_positions) * column_stride - column_pad;
  }

  template <typename Kernel>
  static __device__ __forceinline__ int2 run_of(int unit) {
    return make_int2(threadIdx.x % Kernel::kTileColumns,
                     threadIdx.x / Kernel::kTileColumns * Kernel::kUnits + unit);
  }

  template <typename Kernel>
  __device__ __forceinline__ void fetch(Held (&raw)[Kernel::kUnits][8], int, int input) const {
    const int plane = height * width;
    const int first = input + run_of<Kernel>(0).y * 8;
    const int tap = first / channels;
    int channel = first - tap * channels;
    int kernel_row = tap / kernel_columns, kernel_column = tap - kernel_row * kernel_columns;
    const Raw* source;  // read only where it is inside of the image
    bool inside;
    auto enter_tap = [&] {
      const int at_row = top + kernel_row * row_dilation;
      const int at_column = left + kernel_column * column_dilation;
      inside = static_cast<unsigned>(at_row) < static_cast<unsigned>(height) &&
               static_cast<unsigned>(at_column) < static_cast<unsigned>(width) &&
               kernel_row < kernel_rows;
      source = image + (channel * plane + at_row * width + at_column);
    };
    enter_tap();
#pragma unroll
    for (int at = 0; at < Kernel::kUnits * 8; at += kTapRun) {
#pragma unroll
      for (int i = 0; i < kTapRun; ++i)
        raw[(at + i) / 8][(at + i) % 8] = inside ? __ldg(source + i * plane) : Held(0);
      source += kTapRun * plane;
      channel += kTapRun;
      if (channel == channels) {
        channel = 0;
        if (++kernel_column == kernel_columns) kernel_column = 0, ++kernel_row;
        enter_tap();
      }
    }
  }

  template <typename Kernel>
  __device__ __forceinline__ void store(const float* sums, const float* scale, const float* bias,
                                        int first_row, int first_column, int pass) const {
    constexpr int kRuns = Kernel::kPassColumns / kRun;
    const int local = threadIdx.x % kRuns * kRun;
    const int column = first_column + Kernel::column_of(local, pass);
    if (column >= columns) return;
    const int index = column / positions;
    T* target = y + static_cast<size_t>(index) * copies * rows * positions +
                (column - index * positions);
    for (int at = threadIdx.x / kRuns; at < Kernel::kTileRows; at += Kernel::kThreads / kRuns) {
      const int row = first_row + at;
      if (row >= rows) break;
      float values[kRun];
      load_floats(values, sums + place<Kernel>(at, local));
      for (int copy = 0; copy < copies; ++copy) {
        const int output = copy * rows + row;
        const float factor = __ldg(scale + output), shift = __ldg(bias + output);
        float results[kRun];
#pragma unroll
        for (int i = 0; i < kRun; ++i)
          results[i] = Kernel::Activation::apply(fmaf(values[i], factor, shift));
        store_values(target + static_cast<size_t>(output) * positions, results);
      }
    }
  }
};

// u[row, column] = sum_k sign[row, k] x[column, k] for one tile of a block: signs are unpacked in
// registers, x passes through a ring of stages in shared memory. `kShares` groups of warps divide
// the inputs of a stage; their sums meet in a fixed order.
template <typename Layout_, typename Activation_, int kRowWarps, int kColumnWarps, int kShares,
          int kRowTiles, int kColumnTiles, int kDepth, int kStages>
struct MmaGemm {
  using Layout = Layout_;
  using Activation = Activation_;
  using T = typename Layout::T;
  using Value = typename Staged<T>::Type;
  using Held = typename Layout::Held;
  static constexpr int kParts = Staged<T>::kParts;
  static constexpr int kThreads = 32 * kRowWarps * kColumnWarps * kShares;
  static constexpr int kTileRows = 16 * kRowTiles * kRowWarps;
  static constexpr int kTileColumns = 8 * kColumnTiles * kColumnWarps;
  static constexpr int kStageInputs = kDepth * kShares;
  static constexpr int kUnits = kTileColumns * kStageInputs / 8 / kThreads;
  static constexpr int kPitch = 2 * kStageInputs + 16;  // bytes; spreads columns over the banks
  static constexpr int kPartBytes = kTileColumns * kPitch;
  static constexpr int kStageBytes = kParts * kPartBytes;
  static constexpr int kPassTiles = kColumnTiles > 2 ? kColumnTiles / 2 : kColumnTiles;
  static constexpr int kPassColumns = 8 * kPassTiles * kColumnWarps;
  static constexpr int kSums = Layout::sums(kTileRows, kPassColumns);
  static constexpr int kSharedBytes = kStages * kStageBytes > kShares * kSums * 4
                                          ? kStages * kStageBytes
                                          : kShares * kSums * 4;
  static_assert(kUnits * 8 * kThreads == kTileColumns * kStageInputs, "uneven shares of x");
  static_assert(Layout::kCopied || kStages == 2, "registers hold the third stage");

  Layout layout;
  const unsigned* words;
  const float* scale;
  const float* bias;

  // Set by run().
  int first_row_, first_column_, lane_, row_warp_, column_warp_, share_, steps_;
  unsigned staged_;
  int lines_[kRowTiles][2];

  // The column within a tile that is column `at` of a pass.
  static __device__ __forceinline__ int column_of(int at, int pass) {
    constexpr int kWidth = 8 * kPassTiles;
    return at / kWidth * (8 * kColumnTiles) + pass * kWidth + at % kWidth;
  }

  __device__ __forceinline__ void run(unsigned char* shared) {
    const int row_tiles = (layout.rows + kTileRows - 1) / kTileRows;
    first_row_ = blockIdx.x % row_tiles * kTileRows;
    first_column_ = blockIdx.x / row_tiles * kTileColumns;
    lane_ = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;
    row_warp_ = warp % kRowWarps;
    column_warp_ = warp / kRowWarps % kColumnWarps;
    share_ = warp / (kRowWarps * kColumnWarps);
    staged_ = shared_address(shared);
    steps_ = (layout.inputs + kStageInputs - 1) / kStageInputs;
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row =
            first_row_ + (row_warp_ * kRowTiles + tile) * 16 + half * 8 + lane_ / 4;
        lines_[tile][half] = min(row, layout.rows - 1) * 4 + lane_ % 4;
      }
    layout.begin(first_column_ + Layout::template run_of<MmaGemm>(0).x);

    float sums[kRowTiles][kColumnTiles][4] = {};
    unsigned next[kRowTiles][2];
    fetch_words(next, 0);
    wait_for_previous();
    if constexpr (Layout::kCopied) {
      multiply_copied(sums, next);
    } else {
      multiply_fetched(sums, next);
    }
    __syncthreads();
    finish(sums, reinterpret_cast<float*>(shared));
  }

 private:
  // Stages come by asynchronous copies, `kStages - 1` ahead.
  __device__ __forceinline__ void multiply_copied(float (&sums)[kRowTiles][kColumnTiles][4],
                                                  unsigned (&next)[kRowTiles][2]) {
#pragma unroll
    for (int step = 0; step < kStages - 1; ++step) copy(step, step);
    int stage = 0, target = kStages - 1;
    for (int step = 0; step < steps_; ++step) {
      asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 2) : "memory");
      __syncthreads();
      copy(step + kStages - 1, target);
      multiply(sums, next, step, stage);
      target = stage;
      if (++stage == kStages) stage = 0;
    }
  }

  __device__ __forceinline__ void copy(int step, int stage) {
    if (step < steps_)
      layout.template copy<MmaGemm>(staged_ + stage * kStageBytes, first_column_,
                                    step * kStageInputs);
    asm volatile("cp.async.commit_group;" ::: "memory");
  }

  // Stages come through registers, which hold the next one while this one is multiplied.
  __device__ __forceinline__ void multiply_fetched(float (&sums)[kRowTiles][kColumnTiles][4],
                                                   unsigned (&next)[kRowTiles][2]) {
    Held raw[kUnits][8];
    layout.template fetch<MmaGemm>(raw, first_column_, 0);
    put(raw, 0);
    __syncthreads();
    for (int step = 0; step < steps_; ++step) {
      const bool more = step + 1 < steps_;
      if (more) layout.template fetch<MmaGemm>(raw, first_column_, (step + 1) * kStageInputs);
      multiply(sums, next, step, step % 2);
      if (more) put(raw, (step + 1) % 2);
      __syncthreads();
    }
  }

  __device__ __forceinline__ void put(const Held (&raw)[kUnits][8], int stage) {
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
      const int2 run = Layout::template run_of<MmaGemm>(unit);
      uint4 parts[kParts];
      Staged<T>::split(parts, raw[unit]);
#pragma unroll
      for (int part = 0; part < kParts; ++part)
        asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(
                         staged_ + stage * kStageBytes + part * kPartBytes + run.x * kPitch +
                         run.y * 16),
                     "r"(parts[part].x), "r"(parts[part].y), "r"(parts[part].z),
                     "r"(parts[part].w)
                     : "memory");
    }
  }

  __device__ __forceinline__ int first_input(int step) const {
    return (step * kShares + share_) * kDepth;
  }

  __device__ __forceinline__ void fetch_words(unsigned (&word)[kRowTiles][2], int step) const {
    const int block = min(first_input(step), layout.inputs - 1) / 128;
    const unsigned* source = words + static_cast<size_t>(block) * layout.rows * 4;
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile)
#pragma unroll
      for (int half = 0; half < 2; ++half) word[tile][half] = __ldg(source + lines_[tile][half]);
  }

  __device__ __forceinline__ void multiply(float (&sums)[kRowTiles][kColumnTiles][4],
                                           unsigned (&next)[kRowTiles][2], int step, int stage) {
    // This step's bits to the top of each half word.
    const int shift = 16 - kDepth / 8 - first_input(step) % 128 / 8;
    unsigned word[kRowTiles][2];
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile)
      word[tile][0] = next[tile][0] << shift, word[tile][1] = next[tile][1] << shift;
    if (step + 1 < steps_) fetch_words(next, step + 1);
    if constexpr (kParts == 1) {
      accumulate(sums, word, stage);
    } else {
      // Tensor cores cut sums off; float32 sums of short products keep the bits.
      float products[kRowTiles][kColumnTiles][4] = {};
      accumulate(products, word, stage);
#pragma unroll
      for (int tile = 0; tile < kRowTiles; ++tile)
#pragma unroll
        for (int column = 0; column < kColumnTiles; ++column)
#pragma unroll
          for (int i = 0; i < 4; ++i) sums[tile][column][i] += products[tile][column][i];
    }
  }

  __device__ __forceinline__ void accumulate(float (&sums)[kRowTiles][kColumnTiles][4],
                                             const unsigned (&word)[kRowTiles][2], int stage) {
    const int line = column_warp_ * 8 * kColumnTiles + lane_ / 16 * 8 + lane_ % 8;
    const unsigned base = staged_ + stage * kStageBytes + line * kPitch + share_ * kDepth * 2 +
                          lane_ / 8 % 2 * 16;
#pragma unroll
    for (int slice = 0; slice < kDepth / 16; ++slice) {
      unsigned a[kRowTiles][4];
#pragma unroll
      for (int tile = 0; tile < kRowTiles; ++tile)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          a[tile][i] = signs<Value>(word[tile][i % 2], 16 - kDepth / 8 + 2 * slice + i / 2);
#pragma unroll
      for (int part = kParts - 1; part >= 0; --part) {
        unsigned b[kColumnTiles / 2][4];
#pragma unroll
        for (int pair = 0; pair < kColumnTiles / 2; ++pair)
          load_columns(b[pair], base + part * kPartBytes + pair * 16 * kPitch + slice * 32);
#pragma unroll
        for (int column = 0; column < kColumnTiles; ++column)
#pragma unroll
          for (int tile = 0; tile < kRowTiles; ++tile)
            mma(sums[tile][column], a[tile], b[column / 2][column % 2 * 2],
                b[column / 2][column % 2 * 2 + 1], Value());
      }
    }
  }

  __device__ __forceinline__ void finish(const float (&sums)[kRowTiles][kColumnTiles][4],
                                         float* shared) {
#pragma unroll
    for (int pass = 0; pass < kColumnTiles / kPassTiles; ++pass) {
      if (pass > 0) __syncthreads();
      float* mine = shared + share_ * kSums;
#pragma unroll
      for (int tile = 0; tile < kRowTiles; ++tile)
#pragma unroll
        for (int column = 0; column < kPassTiles; ++column)
#pragma unroll
          for (int i = 0; i < 4; ++i)
            mine[Layout::template place<MmaGemm>(
                (row_warp_ * kRowTiles + tile) * 16 + i / 2 * 8 + lane_ / 4,
                (column_warp_ * kPassTiles + column) * 8 + lane_ % 4 * 2 + i % 2)] =
                sums[tile][pass * kPassTiles + column][i];
      __syncthreads();
      if constexpr (kShares > 1) {
        for (int at = threadIdx.x; at < kSums; at += kThreads) {
          float sum = shared[at];
#pragma unroll
          for (int share = 1; share < kShares; ++share) sum += shared[share * kSums + at];
          shared[at] = sum;
        }
        __syncthreads();
      }
      layout.template store<MmaGemm>(shared, scale, bias, first_row_, first_column_, pass);
    }
  }
};

}  // namespace tbn
#endif
