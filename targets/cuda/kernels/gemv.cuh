#ifndef TBN_GEMV
#define TBN_GEMV

namespace tbn {

// How x becomes operand B, 8 rows by 32 inputs at a time: as it is, ...
template <typename T>
struct Operand {
  using Factor = T;
  static constexpr int kParts = 1;
  static constexpr int kPadding = 16;  // bytes after a row, so that no two rows share a bank
  static __device__ __forceinline__ int row(int lane) { return lane % 8; }
  static __device__ __forceinline__ int offset(int lane) { return lane / 8 * 16; }
  static __device__ __forceinline__ void load(unsigned (&b)[1][4], unsigned address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(b[0][0]), "=r"(b[0][1]), "=r"(b[0][2]), "=r"(b[0][3])
                 : "r"(address));
  }
};

// ... or in three parts of eight bits each, whose sum is x.
template <>
struct Operand<float> {
  using Factor = __nv_bfloat16;
  static constexpr int kParts = 3;
  static constexpr int kPadding = 32;
  static __device__ __forceinline__ int row(int lane) { return lane / 4; }
  static __device__ __forceinline__ int offset(int lane) { return lane % 4 * 8; }
  static __device__ __forceinline__ void load(unsigned (&b)[3][4], unsigned address) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float low, high;
      asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                   : "=f"(low), "=f"(high)
                   : "r"(address + i * 32));
#pragma unroll
      for (int part = 0; part < 3; ++part) b[part][i] = take_upper_halves(low, high);
    }
  }
};

// A few rows of x. Each warp multiplies `16 kRowTiles` distinct rows with its share of the inputs;
// the shares' sums meet in shared memory. Where several blocks divide the inputs, y is
// float[kSplits][batch][rows], for `GemvFinish`.
template <typename T_, typename Activation_, int kRowWarps_, int kRowTiles_, int kInputWarps_,
          int kSplits_, int kLines_, int kStages_>
struct Gemv {
  using T = T_;
  using Activation = Activation_;
  using X = Operand<T>;
  using Factor = typename X::Factor;
  static constexpr int kRowWarps = kRowWarps_;
  static constexpr int kRowTiles = kRowTiles_;
  static constexpr int kInputWarps = kInputWarps_;
  static constexpr int kSplits = kSplits_;
  static constexpr int kLines = kLines_;    // the most rows of x, up to 16
  static constexpr int kStages = kStages_;  // blocks of 128 inputs in shared memory, per share
  static constexpr int kTiles = (kLines + 7) / 8;
  // In turn, because a product waits for its sum; of float32 also because each addition truncates.
  static constexpr int kSums = kRowTiles * kTiles < 4 || X::kParts > 1 ? 2 : 1;
  static constexpr int kThreads = 32 * kRowWarps * kInputWarps;
  static constexpr int kShareThreads = 32 * kRowWarps;
  static constexpr int kWarpRows = 16 * kRowTiles;
  static constexpr int kRows = kWarpRows * kRowWarps;
  static constexpr int kBatch = 8 * kTiles;
  static constexpr int kPitch = (kRows + 27) / 32 * 32 + 4;  // no two lanes share a bank
  static constexpr int kSumBytes = kInputWarps * kBatch * kPitch * 4;
  static constexpr int kLineBytes = 128 * sizeof(T) + X::kPadding;
  static constexpr int kPiece = 16 / sizeof(T);  // inputs that are copied at once
  static constexpr int kPieces = 128 / kPiece;
  static constexpr int kStageBytes = kRows * 16 + kLines * kLineBytes;
  static constexpr int kRingBytes = kInputWarps * kStages * kStageBytes;
  static constexpr int kSharedBytes = kRingBytes > kSumBytes ? kRingBytes : kSumBytes;
  static_assert(kRowWarps == 1 || kInputWarps < 16, "each share has a barrier of its own");

  int rows, copies, batch, inputs;
  const unsigned* words;
  const float* scale;
  const float* bias;
  const T* x;
  void* y;

  __device__ __forceinline__ void run(unsigned char* shared) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int row_warp = warp % kRowWarps, input_warp = warp / kRowWarps;
    const int group = blockIdx.x / kSplits, rank = blockIdx.x % kSplits;
    const int blocks = (inputs + 127) / 128;
    const int each = (blocks + kSplits * kInputWarps - 1) / (kSplits * kInputWarps);
    const int begin = (rank * kInputWarps + input_warp) * each, end = min(begin + each, blocks);
    const int first_row = group * kRows + row_warp * kWarpRows;
    const unsigned ring = shared_address(shared) + input_warp * kStages * kStageBytes;
    const unsigned own = ring + row_warp * kWarpRows * 16;
    const unsigned lines = ring + kRows * 16;

#pragma unroll
    for (int i = 0; i < kStages - 1; ++i)
      if (begin + i < end) stage_words(own + i * kStageBytes, begin + i, first_row, lane);
    asm volatile("cp.async.commit_group;" ::: "memory");
    const int output = kSplits > 1 ? -1 : output_of(group, threadIdx.x);
    const float factor = output < 0 ? 0.f : __ldg(scale + output);
    const float shift = output < 0 ? 0.f : __ldg(bias + output);
    let_next_start();
    wait_for_previous();
#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) {
      if (begin + i < end)
        stage_lines(lines + i * kStageBytes, begin + i, row_warp * 32 + lane);
      asm volatile("cp.async.commit_group;" ::: "memory");
    }

    float sums[kSums][kRowTiles][kTiles][4] = {};
    // Lanes of absent rows of x read the last one; their columns are never stored.
    unsigned operands[kTiles];
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
      operands[tile] =
          lines + min(tile * 8 + X::row(lane), max(batch - 1, 0)) * kLineBytes + X::offset(lane);

    unsigned stage = 0, refilled = (kStages - 1) * kStageBytes;
    for (int block = begin; block < end; ++block) {
      asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 2) : "memory");
      meet_share(input_warp);
      const int next = block + kStages - 1;
      if (next < end) {
        stage_words(own + refilled, next, first_row, lane);
        stage_lines(lines + refilled, next, row_warp * 32 + lane);
      }
      asm volatile("cp.async.commit_group;" ::: "memory");
      accumulate(sums, own + stage + lane * 4, operands, stage);
      refilled = stage;
      stage = stage == (kStages - 1) * kStageBytes ? 0 : stage + kStageBytes;
    }
    __syncthreads();  // the sums take the place of words and x
    float* partial = reinterpret_cast<float*>(shared);
#pragma unroll
    for (int row_tile = 0; row_tile < kRowTiles; ++row_tile)
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float sum = sums[0][row_tile][tile][i];
          if constexpr (kSums == 2) sum += sums[1][row_tile][tile][i];
          const int line = tile * 8 + lane % 4 * 2 + i % 2;
          const int row = row_warp * kWarpRows + row_tile * 16 + lane / 4 + i / 2 * 8;
          partial[(input_warp * kBatch + line) * kPitch + row] = sum;
        }
    __syncthreads();
    if constexpr (kSplits > 1) {
      store(partial, group, rank);
    } else {
      finish(partial, group, output, factor, shift);
    }
  }

 private:
  static __device__ __forceinline__ void copy(unsigned target, const void* source, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(source),
                 "r"(bytes)
                 : "memory");
  }

  // The warps of one share of the inputs wait for each other.
  __device__ __forceinline__ void meet_share(int input_warp) {
    if constexpr (kRowWarps == 1) {
      __syncwarp();
    } else {
      asm volatile("bar.sync %0, %1;" ::"r"(input_warp + 1), "n"(kShareThreads) : "memory");
    }
  }

  // Brings the words of a warp's rows.
  __device__ __forceinline__ void stage_words(unsigned target, int block, int first_row, int lane) {
#pragma unroll
    for (int at = 0; at < kWarpRows; at += 32) {
      const int row = min(first_row + at + lane, rows - 1);
      if (at + lane < kWarpRows)
        copy(target + (at + lane) * 16, words + (static_cast<size_t>(block) * rows + row) * 4, 16);
    }
  }

  // Brings a block of x, divided among the warps that read it; zeros beyond its end.
  __device__ __forceinline__ void stage_lines(unsigned target, int block, int thread) {
#pragma unroll
    for (int at = thread; at < kLines * kPieces; at += kShareThreads) {
      const int line = at / kPieces, piece = at % kPieces;
      const int input = block * 128 + piece * kPiece;
      const T* source = x + static_cast<size_t>(line) * inputs + min(input, inputs - kPiece);
      if (line < batch)
        copy(target + line * kLineBytes + piece * 16, source, input < inputs ? 16 : 0);
    }
  }

  __device__ __forceinline__ void accumulate(float (&sums)[kSums][kRowTiles][kTiles][4],
                                             unsigned own, const unsigned (&operands)[kTiles],
                                             unsigned stage) {
    unsigned word[kRowTiles][2];
#pragma unroll
    for (int i = 0; i < 2 * kRowTiles; ++i)
      asm volatile("ld.shared.b32 %0, [%1];" : "=r"(word[i / 2][i % 2]) : "r"(own + i * 128));
#pragma unroll
    for (int four = 0; four < 4; ++four) {
      unsigned b[kTiles][X::kParts][4];
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile)
        X::load(b[tile], operands[tile] + stage + four * 32 * static_cast<int>(sizeof(T)));
#pragma unroll
      for (int two = 0; two < 2; ++two)
#pragma unroll
        for (int row_tile = 0; row_tile < kRowTiles; ++row_tile) {
          const int pair = four * 4 + two * 2;
          const unsigned(&w)[2] = word[row_tile];
          const unsigned a[4] = {signs<Factor>(w[0], pair), signs<Factor>(w[1], pair),
                                 signs<Factor>(w[0], pair + 1), signs<Factor>(w[1], pair + 1)};
#pragma unroll
          for (int part = 0; part < X::kParts; ++part)
#pragma unroll
            for (int tile = 0; tile < kTiles; ++tile)
              mma(sums[two % kSums][row_tile][tile], a, b[tile][part][two * 2],
                  b[tile][part][two * 2 + 1], Factor());
        }
    }
  }

  static __device__ __forceinline__ float sum_of(const float* partial, int line, int row) {
    float values[kInputWarps];
#pragma unroll
    for (int i = 0; i < kInputWarps; ++i) values[i] = partial[(i * kBatch + line) * kPitch + row];
    float sum = values[0];
#pragma unroll
    for (int i = 1; i < kInputWarps; ++i) sum += values[i];
    return sum;
  }

  __device__ __forceinline__ void store(const float* partial, int group, int rank) {
    float* target = static_cast<float*>(y) + static_cast<size_t>(rank) * batch * rows;
    for (int at = threadIdx.x; at < kRows * batch; at += kThreads) {
      const int line = at / kRows, row = group * kRows + at % kRows;
      if (row < rows)
        target[static_cast<size_t>(line) * rows + row] = sum_of(partial, line, at % kRows);
    }
  }

  // The output that item `at` of this block's rows and copies stands for, or -1.
  __device__ __forceinline__ int output_of(int group, int at) {
    const int row = group * kRows + at % kRows;
    return row < rows ? at / kRows % copies * rows + row : -1;
  }

  __device__ __forceinline__ void finish(const float* partial, int group, int output, float factor,
                                         float shift) {
    for (int at = threadIdx.x; at < kRows * copies * batch; at += kThreads) {
      const int line = at / kRows / copies;
      if (at != threadIdx.x) {
        output = output_of(group, at);
        factor = output < 0 ? 0.f : __ldg(scale + output);
        shift = output < 0 ? 0.f : __ldg(bias + output);
      }
      const float value = fmaf(sum_of(partial, line, at % kRows), factor, shift);
      if (output >= 0)
        static_cast<T*>(y)[static_cast<size_t>(line) * copies * rows + output] =
            T(Activation::apply(value));
    }
  }
};

// Adds the sums of all splits, in order, and writes their copies; four distinct rows per thread.
template <typename T_, typename Activation_, int kSplits_>
struct GemvFinish {
  using T = T_;
  using Activation = Activation_;
  static constexpr int kSplits = kSplits_;

  int rows, copies, batch;
  const float4* sums;  // [kSplits][batch][rows / 4]
  const float4* scale;
  const float4* bias;
  T* y;

  __device__ __forceinline__ void run() {
    const int quads = rows / 4, at = blockIdx.x * blockDim.x + threadIdx.x;
    const int line = at / quads, quad = at % quads;
    let_next_start();
    wait_for_previous();
    if (line >= batch) return;
    float4 values[kSplits];
#pragma unroll
    for (int i = 0; i < kSplits; ++i)
      values[i] = __ldcg(sums + static_cast<size_t>(i * batch + line) * quads + quad);
    float4 sum = values[0];
#pragma unroll
    for (int i = 1; i < kSplits; ++i)
      sum.x += values[i].x, sum.y += values[i].y, sum.z += values[i].z, sum.w += values[i].w;
    T* target = y + static_cast<size_t>(line) * copies * rows + quad * 4;
#pragma unroll 4
    for (int copy = 0; copy < copies; ++copy) {
      const float4 factor = __ldg(scale + copy * quads + quad);
      const float4 shift = __ldg(bias + copy * quads + quad);
      struct alignas(4 * sizeof(T)) Four {
        T values[4];
      };
      const Four four = {{T(Activation::apply(fmaf(sum.x, factor.x, shift.x))),
                          T(Activation::apply(fmaf(sum.y, factor.y, shift.y))),
                          T(Activation::apply(fmaf(sum.z, factor.z, shift.z))),
                          T(Activation::apply(fmaf(sum.w, factor.w, shift.w)))}};
      *reinterpret_cast<Four*>(target + static_cast<size_t>(copy) * rows) = four;
    }
  }
};

}  // namespace tbn
#endif
