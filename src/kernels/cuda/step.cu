template <int KIND> struct Tag { static constexpr int kind = KIND; };

extern "C" __global__ void __launch_bounds__(THREADS, 1) step(const __grid_constant__ Step step) {
  extern __shared__ __align__(128) u8 memory[];
  u32* table = reinterpret_cast<u32*>(memory);
  u8* ring = memory + (FORM == 0 ? 32768 : 0);
  float* acc = reinterpret_cast<float*>(ring + WARPS * STAGES * SLOT_BYTES);
  float* reduced = acc + ACC_FLOATS;                       // [2][BATCH][WARPS]
  float* factors = reduced + 2 * BATCH * WARPS;            // [BATCH]
  u16* inner_xs = reinterpret_cast<u16*>(factors + 32);    // [BATCH][INNER_STRIDE], a x; where LORA
  Pair* pairs = reinterpret_cast<Pair*>(inner_xs + (LORA > 0 ? BATCH * INNER_STRIDE : 0));
  u8* inputs = reinterpret_cast<u8*>(pairs) + PAIRS_BYTES;  // activations of the stage, 16 bits; attention: its own use
  u16* xs = reinterpret_cast<u16*>(inputs);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  if (FORM == 0)
    for (int i = threadIdx.x; i < 256 * 32; i += THREADS) table[i] = step.pairs[i / 32];
  const u32 my_ring = shared_address(ring + warp * STAGES * SLOT_BYTES);
  const u8* my_slots = ring + warp * STAGES * SLOT_BYTES;
  __shared__ Share shares[KINDS];
  set_share<QKV_STAGE>(shares);
  set_share<O_STAGE>(shares);
  set_share<GATE_UP_STAGE>(shares);
  set_share<DOWN_STAGE>(shares);
  set_share<HEAD_STAGE>(shares);
  __shared__ Layer layers[LAYERS];
  for (int i = threadIdx.x; i < (int)(sizeof(Layer) / 8 * LAYERS); i += THREADS)
    reinterpret_cast<u64*>(layers)[i] = reinterpret_cast<const u64*>(step.layers)[i];
  for (int a = 0; a < (LORA > 0 ? step.adapter_count : 0); a++)
    for (int i = threadIdx.x; i < (int)(sizeof(Pair) / 8 * ADAPTER_PAIRS); i += THREADS)
      reinterpret_cast<u64*>(pairs + a * ADAPTER_PAIRS)[i] = reinterpret_cast<const u64*>(step.adapters[a])[i];
  __shared__ u16 inner_counts[4 * LAYERS + 1];  // all_inner_tiles; where LORA
  __shared__ int lengths[BATCH], tokens[BATCH], adapters[BATCH];
  if (threadIdx.x < BATCH) {
    lengths[threadIdx.x] = step.sequences[threadIdx.x].length;
    tokens[threadIdx.x] = step.sequences[threadIdx.x].token;
    adapters[threadIdx.x] = (int)step.sequences[threadIdx.x].adapter;
  }
  __syncthreads();
#if LORA > 0
  for (int i = threadIdx.x; i <= 4 * LAYERS; i += THREADS) inner_counts[i] = all_inner_tiles(pairs, shares[kind_of(i)], step.adapter_count, i);
  __syncthreads();
#endif
  Producer producer(step, layers, shares, pairs, inner_counts, my_ring);
#pragma unroll 1
  for (int i = 0; i < STAGES - 1; i++) producer.fetch(i);
  int slot = 0;
  u32 arrivals = 0;

  // All blocks have written what others read next.
  auto barrier = [&]() {
    __syncthreads();
    arrivals += gridDim.x;
    if (threadIdx.x == 0) {
      asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(step.barrier) : "memory");
      u32 seen;
      do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(step.barrier) : "memory");
      } while (seen < arrivals);
    }
    __syncthreads();
  };

  // Residual (`base`, or the token's embedding) + `count` parts of the previous stage -> `keep` (this block's slice) and, normed,
  // the activations.
  auto norm = [&](const float* base, const float* parts, int count, const float* weight, float* keep, bool half) {
    constexpr int PAIRS = (HIDDEN / 2 + THREADS - 1) / THREADS, MOST = SPLITS > KV_HEADS ? SPLITS : KV_HEADS;
    constexpr int MINE = GATHER ? 1 : BATCH;  // sequences of this block
    float2 values[MINE][PAIRS];
    float sum[MINE], largest[MINE];
    if (GATHER && blockIdx.x >= BATCH) return;
    const int from = GATHER ? 0 : (int)((long long)HIDDEN / 2 * blockIdx.x / gridDim.x);
    const int to = GATHER ? HIDDEN / 2 : (int)((long long)HIDDEN / 2 * (blockIdx.x + 1) / gridDim.x);
#pragma unroll
    for (int m = 0; m < MINE; m++) {
      const int b = GATHER ? blockIdx.x : m;
      sum[m] = 0;
      largest[m] = 0;
#pragma unroll
      for (int i = 0; i < PAIRS; i++) {
        const int k = i * THREADS + threadIdx.x;
        values[m][i] = make_float2(0, 0);
        if (k < HIDDEN / 2) {
          if (base == nullptr) {
            const u32 both = reinterpret_cast<const u32*>(step.embedding + (u64)tokens[b] * HIDDEN)[k];
            values[m][i] = make_float2(low(both), high(both));
          } else {
            values[m][i] = __ldcg(reinterpret_cast<const float2*>(base + b * HIDDEN) + k);
          }
        }
      }
#pragma unroll
      for (int p = 0; p < MOST; p++) {
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
          const int k = i * THREADS + threadIdx.x;
          if (p < count && k < HIDDEN / 2) {
            const float2 part = __ldcg(reinterpret_cast<const float2*>(parts + (u64)(p * BATCH + b) * HIDDEN) + k);
            values[m][i].x += part.x;
            values[m][i].y += part.y;
          }
        }
      }
#pragma unroll
      for (int i = 0; i < PAIRS; i++) {
        const int k = i * THREADS + threadIdx.x;
        if (k < HIDDEN / 2) {
          const float2 v = values[m][i], w = __ldg(reinterpret_cast<const float2*>(weight) + k);
          if (k >= from && k < to && keep != nullptr) reinterpret_cast<float2*>(keep + b * HIDDEN)[k] = v;
          sum[m] += v.x * v.x + v.y * v.y;
          values[m][i] = make_float2(v.x * w.x, v.y * w.y);
          largest[m] = fmaxf(largest[m], fmaxf(fabsf(v.x * w.x), fabsf(v.y * w.y)));
        }
      }
    }
    reduce(sum, largest, reduced);
#pragma unroll
    for (int m = 0; m < MINE; m++) {
      const int b = GATHER ? blockIdx.x : m;
      const float by = rsqrtf(sum[m] / HIDDEN + step.eps);
      // f16 is scaled to its range, and the sums are multiplied by the norm's factor; bf16 is normed first.
      float factor;
      const float scale = scale_of(largest[m], half, half ? by : 1.f, factor) * (half ? 1.f : by);
      if (threadIdx.x == 0) (GATHER ? step.factors : factors)[b] = factor;
#pragma unroll
      for (int i = 0; i < PAIRS; i++) {
        const int k = i * THREADS + threadIdx.x;
        if (k < HIDDEN / 2) {
          u16* to = GATHER ? step.activations + b * HIDDEN : xs + b * (HIDDEN + 8);
          reinterpret_cast<u32*>(to)[k] = packed(values[m][i].x * scale, values[m][i].y * scale, half);
        }
      }
    }
  };

  // `value(b, pair)` of WIDTH columns -> the activations.
  auto stage_values = [&](auto width, auto&& value) {
    constexpr int WIDTH = decltype(width)::kind, PAIRS = (WIDTH / 2 + THREADS - 1) / THREADS;
    float2 values[BATCH][PAIRS];
    float sum[BATCH], largest[BATCH];
#pragma unroll
    for (int b = 0; b < BATCH; b++) {
      sum[b] = 0;
      largest[b] = 0;
#pragma unroll
      for (int i = 0; i < PAIRS; i++) {
        const int k = i * THREADS + threadIdx.x;
        values[b][i] = make_float2(0, 0);
        if (k < WIDTH / 2) values[b][i] = value(b, k);
        largest[b] = fmaxf(largest[b], fmaxf(fabsf(values[b][i].x), fabsf(values[b][i].y)));
      }
    }
    reduce(sum, largest, reduced);
#pragma unroll
    for (int b = 0; b < BATCH; b++) {
      float factor;
      const float scale = scale_of(largest[b], CODED, 1.f, factor);
      if (threadIdx.x == 0) factors[b] = factor;
#pragma unroll
      for (int i = 0; i < PAIRS; i++) {
        const int k = i * THREADS + threadIdx.x;
        if (k < WIDTH / 2)
          reinterpret_cast<u32*>(xs + b * (WIDTH + 8))[k] = packed(values[b][i].x * scale, values[b][i].y * scale, CODED);
      }
    }
  };

  // The sums of one output row, scaled, and what LoRA adds, to where the next stage reads them.
  auto finish = [&](int kind, const Layer& layer, const Share& share, int tile, int line, int b, float2 sums, float2 loras) {
    const int row = tile * 16 + line;
    auto plus = [](float sum, float lora) { return LORA > 0 ? sum + lora : sum; };
    switch (kind) {
      case QKV_STAGE:
        step.qkv[(u64)b * QKV + row] = plus(sums.x * layer.units[0] + layer.bias[row], loras.x);
        break;
      case O_STAGE:
        step.o_parts[(u64)(share.split * BATCH + b) * HIDDEN + row] = plus(sums.x * layer.units[1], loras.x);
        break;
      case GATE_UP_STAGE: {
        const float gate = plus(sums.x * layer.units[2], loras.x), up = plus(sums.y * layer.units[2], loras.y);
        step.inner[(u64)b * INTER + tile * 8 + line] = gate / (1.f + __expf(-gate)) * up;
        break;
      }
      case DOWN_STAGE:
        step.down_parts[(u64)(share.split * BATCH + b) * HIDDEN + row] = plus(sums.x * layer.units[3], loras.x);
        break;
      default:
        step.logits[(u64)b * VOCAB + row] = plus(sums.x, loras.x);
    }
  };

  // Frees the ring's first slot.
  auto next_slot = [&]() {
    int to = slot + STAGES - 1;
    if (to >= STAGES) to -= STAGES;
    producer.fetch(to);
    if (++slot == STAGES) slot = 0;
  };

  // The ring's next tile of codes, see multiply_tile.
  auto take_tile = [&](float* s, const u16* x) {
    asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
    __syncwarp();
#if CODED
    multiply_tile(s, reinterpret_cast<const uint4*>(my_slots + slot * SLOT_BYTES), x, memory);
#endif
    __syncwarp();
    next_slot();
  };

  // The ring's next tile of 16-bit rows: `multiply(i, p, q)` with the values of its rows g and g + 8 from column 32 i + 8 t on.
  auto read_rows = [&](auto&& multiply) {
    asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 1 - DENSE_SLOTS) : "memory");
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 2; i++) {
      int at = slot + i * (DENSE_SLOTS - 1);
      if (at >= STAGES) at -= STAGES;
      const uint4* data = reinterpret_cast<const uint4*>(my_slots + at * SLOT_BYTES + i * (2 - DENSE_SLOTS) * 1024);
      multiply(i, data[lane], data[32 + lane]);
    }
  };

  // Fetches into its slots again.
  auto free_rows = [&]() {
    __syncwarp();
#pragma unroll 1
    for (int i = 0; i < DENSE_SLOTS; i++) next_slot();
  };

  const bool is_there = BATCH == 8 || g < BATCH;

#if LORA > 0
  const int group = warp / INNER_WARPS, member = warp % INNER_WARPS;
  // Tasks of collect_inner that the block's warps have done and will have done, since the beginning.
  __shared__ u32 collected;
  if (threadIdx.x == 0) collected = 0;
  u32 expected = 0;

  // This block's share of a x of the stage, for all to read.
  auto multiply_inner = [&](int stage, u32 tag) {
    const int kind = kind_of(stage);
    const Share& share = shares[kind];
    float* sums = acc + ROUND_FLOATS + group * INNER_WARPS * 16 * BATCH;
#pragma unroll 1
    for (int tile = share.tile[group]; tile < inner_counts[stage]; tile += share.tile_step) {
      const bool works = member < share.part_tiles[group];
      const u16* x = xs + g * (share.width + 8) + (share.part_first[group] + member) * DENSE_COLUMNS + 8 * t;
      float s[4] = {0, 0, 0, 0};
      if (works) {
        read_rows([&](int i, const uint4& p, const uint4& q) {
          uint4 v = values_at(x + 32 * i, is_there);
          if (CODED && kind != HEAD_STAGE) v = make_uint4(from_f16(v.x), from_f16(v.y), from_f16(v.z), from_f16(v.w));
          multiply_rows(s, p, q, v);
        });
      }
      keep(sums + member * 16 * BATCH, s);
      sync_group(group);
      // The waiting blocks first.
      if (member == 0) {
        const InnerUnit unit = find_inner(pairs, share, stage, tile);
        const int part = share.split * inner_parts(share.width) + share.part[group];
#pragma unroll
        for (int i = lane; i < 16 * BATCH; i += 32) {
          const int b = i / 16, rank = unit.tile * 16 + i % 16;
          if (adapters[b] != unit.adapter || rank >= LORA) continue;
          float sum = 0;
#pragma unroll
          for (int m = 0; m < INNER_WARPS; m++) sum += sums[m * 16 * BATCH + i];
          store_tagged(step.inner_parts + ((u64)(b * 3 + unit.index) * most_parts() + part) * LORA + rank, sum * factors[b], tag);
        }
      }
      if (works) free_rows();
      if (tile + share.tile_step < inner_counts[stage]) sync_group(group);
    }
  };

  // scale * a x of the pairs `index` to `last` of the stage, as soon as all blocks have written their `parts`, at most MOST. Some
  // lanes add the parts of one value; the last warps begin, as the first ones have the tiles of multiply_outer.
  auto collect_inner = [&](auto most, int parts, int stage, u32 tag, int index, int last) {
    constexpr int MOST = decltype(most)::kind, lanes = MOST <= 10 ? 1 : MOST <= 20 ? 2 : MOST <= 40 ? 4 : 8;
    constexpr int loads = (MOST + lanes - 1) / lanes, ranks = 32 / lanes;
    const int tasks = (last + 1 - index) * BATCH * (LORA / ranks);
    expected += tasks;
#pragma unroll 1
    for (int task = WARPS - 1 - warp; task < tasks; task += WARPS) {
      const int rank = task % (LORA / ranks) * ranks + lane % ranks, rest = task / (LORA / ranks), b = rest % BATCH, i = index + rest / BATCH;
      const Pair* pair = pairs_of(pairs, shares[kind_of(stage)], max(adapters[b], 0), stage) + i;
      const bool there = adapters[b] >= 0 && rank < pair->rank;
      const u64* from = step.inner_parts + ((u64)(b * 3 + i) * most_parts() + lane / ranks) * LORA + rank;
      u64 part[loads];
#pragma unroll
      for (int p = 0; p < loads; p++) part[p] = there && p * lanes + lane / ranks < parts ? load_tagged(from + p * lanes * LORA) : (u64)tag << 32;
      float sum = 0;
#pragma unroll
      for (int p = 0; p < loads; p++) {
        while ((u32)(part[p] >> 32) != tag) part[p] = load_tagged(from + p * lanes * LORA);
        sum += __uint_as_float((u32)part[p]);
      }
      __syncwarp();
#pragma unroll
      for (int d = 16; d >= ranks; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
      if (lane < ranks) inner_xs[b * INNER_STRIDE + i * LORA + rank] = (u16)two(there ? sum * pair->scale : 0.f, 0.f);
      __syncwarp();
      if (lane == 0) asm volatile("red.release.cta.shared.add.u32 [%0], 1;" ::"r"(shared_address(&collected)) : "memory");
    }
  };

  // b (a x) of a round's row tiles.
  auto multiply_outer = [&](int stage, int row, float* sums) {
    const int kind = kind_of(stage);
    const Share& share = shares[kind];
    const int start = share.first + row, end = share.first + min(row + share.round, share.rows);
    u32 seen = expected - 1;
#pragma unroll 1
    for (int tile = first_outer(kind, share.split, start) + warp * share.splits; tile < end; tile += WARPS * share.splits) {
      while ((int)(seen - expected) < 0) asm volatile("ld.acquire.cta.shared.u32 %0, [%1];" : "=r"(seen) : "r"(shared_address(&collected)) : "memory");
      __syncwarp();
      int of_pair = tile;
      const int index = outer_pair(kind, of_pair);
      float s[4] = {0, 0, 0, 0};
      keep(sums + (tile - start) * 16 * BATCH, s);
#pragma unroll 1
      for (int a = 0; a < step.adapter_count; a++) {
        const int tiles = outer_tiles(pairs_of(pairs, share, a, stage), kind, index);
        const bool mine = is_there && adapters[g % BATCH] == a;
        const u16* x = inner_xs + g * INNER_STRIDE + index * LORA + 8 * t;
#pragma unroll 1
        for (int k = 0; k < tiles; k++, x += DENSE_COLUMNS) {
          read_rows([&](int i, const uint4& p, const uint4& q) {
            const uint4 v = values_at(x + 32 * i, mine), none = make_uint4(0, 0, 0, 0);
            if (kind != GATE_UP_STAGE) return multiply_rows(s, p, q, v);
            multiply_rows(s, p, none, v);
            multiply_rows(s, none, q, values_at(x + LORA + 32 * i, mine));
          });
          keep(sums + (tile - start) * 16 * BATCH, s);
          free_rows();
        }
      }
    }
  };
#endif

  // The sums of a round's rows, from `acc`.
  auto add_up = [&](auto stage_tag, int stage, int row, const Layer& layer) {
    constexpr int kind = decltype(stage_tag)::kind, lines = kind == GATE_UP_STAGE ? 8 : 16;
    using S = Shape<kind>;
    const Share& share = shares[kind];
    const float* loras = acc + share.round * S::chunks * 16 * BATCH;
    const int rows = min(share.round, share.rows - row);
    for (int i = threadIdx.x; i < rows * BATCH * lines; i += THREADS) {
      const int line = i % lines, rest = i / lines, b = rest % BATCH, r = rest / BATCH, tile = share.first + row + r;
      const float* from = acc + r * S::chunks * 16 * BATCH + b * 16 + line;
      const float* lora = loras + (r * BATCH + b) * 16 + line;
      const bool adds = LORA > 0 && inner_counts[stage] > 0 && tile % S::splits == share.split;
      float2 sums = make_float2(0, 0), other = make_float2(0, 0);
#pragma unroll
      for (int c = 0; c < S::chunks; c++) sums.x += from[c * 16 * BATCH];
      if (adds) other.x = lora[0];
      if (kind == GATE_UP_STAGE) {
#pragma unroll
        for (int c = 0; c < S::chunks; c++) sums.y += from[c * 16 * BATCH + 8];
        if (adds) other.y = lora[8];
      }
      finish(kind, layer, share, tile, line, b, make_float2(sums.x * factors[b], sums.y * factors[b]), other);
    }
  };

  // Calls `work` with the stage's kind as a constant.
  auto by_kind = [&](int kind, auto&& work) {
    switch (kind) {
      case QKV_STAGE: work(Tag<QKV_STAGE>()); break;
      case O_STAGE: work(Tag<O_STAGE>()); break;
      case GATE_UP_STAGE: work(Tag<GATE_UP_STAGE>()); break;
      case DOWN_STAGE: work(Tag<DOWN_STAGE>()); break;
      default: work(Tag<HEAD_STAGE>());
    }
  };

  // The products of a stage, by rounds of row tiles whose sums fit `acc`. One code for all stages: the instruction cache is small.
  auto products = [&](int stage, const Layer& layer) {
    const int kind = kind_of(stage);
    const Share& share = shares[kind];
    const int chunks = share.chunks;
    const bool coded = CODED && kind != HEAD_STAGE;
    const u16* x = xs + g * (share.width + 8) + (coded ? 16 : 8) * t;
#if LORA > 0
    const u32 tag = step.epoch * (4 * LAYERS + 1) + stage;
    const bool adapted = inner_counts[stage] > 0;
    bool done = !adapted;
    if (adapted) multiply_inner(stage, tag);
#endif
#pragma unroll 1
    for (int row = 0; row < share.rows; row += share.round) {
      const int last = share.rows - row <= share.round, last_unit = share.units[last][warp + 1];
      int unit = share.units[last][warp], chunk = share.at_chunk[last][warp], column = share.chunk_start(chunk);
#if LORA > 0
      const int middle = (unit + last_unit) / 2;
#endif
#pragma unroll 1
      for (;; unit++) {
#if LORA > 0
        if (!done && unit >= middle) {
          int first = share.first, end = share.first + share.rows - 1;
          const int index = outer_pair(kind, first), last_index = kind == GATE_UP_STAGE ? 1 : outer_pair(kind, end);
          constexpr int wide = inner_parts(HIDDEN), o = KV_HEADS * inner_parts(GROUP * DIM);
          const int parts = share.splits * inner_parts(share.width);
          if (kind == DOWN_STAGE) collect_inner(Tag<SPLITS * inner_parts(INTER / SPLITS)>(), parts, stage, tag, index, last_index);
          else collect_inner(Tag<(wide > o ? wide : o)>(), parts, stage, tag, index, last_index);
          done = true;
        }
#endif
        if (unit >= last_unit) break;
        const int stop = share.chunk_start(chunk + 1);
        float s[4] = {0, 0, 0, 0};
        if (coded) {
#pragma unroll 1
          for (; column < stop; column++) take_tile(s, x + column * 128);
        } else {
#pragma unroll 1
          for (; column < stop; column++) {
            read_rows([&](int i, const uint4& p, const uint4& q) { multiply_rows(s, p, q, values_at(x + column * DENSE_COLUMNS + 32 * i, is_there)); });
            free_rows();
          }
        }
        keep(acc + unit * 16 * BATCH, s);
        if (++chunk == chunks) chunk = column = 0;
      }
#if LORA > 0
      if (adapted) multiply_outer(stage, row, acc + share.round * chunks * 16 * BATCH);
#endif
      __syncthreads();
      by_kind(kind, [&](auto stage_tag) { add_up(stage_tag, stage, row, layer); });
      if (row + share.round < share.rows) __syncthreads();
    }
  };

  // Attention's outputs, each head by one warp of the grid.
  auto combine = [&]() {
    float* weights = acc + warp * step.chunks;
    for (int i = warp * gridDim.x + blockIdx.x; i < BATCH * HEADS; i += WARPS * gridDim.x) {
      const int b = i / HEADS, h = i % HEADS;
      chunk_weights(step, lengths, b, h, weights);
      __syncwarp();
      for (int k = 2 * lane; k < DIM; k += 64)
        *reinterpret_cast<float2*>(step.attended + (u64)i * DIM + k) = attended(step, lengths, b, h, k, weights);
      __syncwarp();
    }
    barrier();
  };

  // What `norm` wrote, once all blocks have met.
  auto load_activations = [&]() {
    barrier();
    constexpr int EIGHTS = HIDDEN / 8;
#pragma unroll 4
    for (int i = threadIdx.x; i < BATCH * EIGHTS; i += THREADS) {
      const int b = i / EIGHTS, k = i % EIGHTS;
      *reinterpret_cast<uint4*>(xs + b * (HIDDEN + 8) + 8 * k) = load_cg(step.activations + (u64)i * 8);
    }
    if (threadIdx.x < BATCH) factors[threadIdx.x] = __ldcg(step.factors + threadIdx.x);
  };

  // Small vectors of later stages, into the L2 cache: each block a line.
  auto prefetch = [&](const float* from, int count) {
    const int at = blockIdx.x * 32 + (int)threadIdx.x * 32 * gridDim.x;
    if (at < count) asm volatile("prefetch.global.L2 [%0];" ::"l"(from + at));
  };

  auto mark = [&](int i) {
    if (TIMES && step.times != nullptr && blockIdx.x == 0 && threadIdx.x == 0) {
      u64 now;
      asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
      step.times[i] = now;
    }
  };

  float* x0 = step.x;
  float* x1 = step.x + BATCH * HIDDEN;
#pragma unroll 1
  for (int stage = 0; stage <= 4 * LAYERS; stage++) {
    const int kind = kind_of(stage);
    const Layer& layer = layers[min(stage / 4, LAYERS - 1)];
    if (kind == QKV_STAGE || kind == GATE_UP_STAGE || kind == HEAD_STAGE) {
      const float* base = stage == 0 ? nullptr : kind == GATE_UP_STAGE ? x0 : x1;
      const float* parts = kind == GATE_UP_STAGE ? step.o_parts : step.down_parts;
      float* keep = kind == GATE_UP_STAGE ? x1 : x0;
      const int count = stage == 0 ? 0 : kind == GATE_UP_STAGE ? KV_HEADS : SPLITS;
      norm(base, parts, count, kind == HEAD_STAGE ? step.norm : kind == QKV_STAGE ? layer.input_norm : layer.post_norm, keep,
           CODED && kind != HEAD_STAGE);
      if constexpr (GATHER) load_activations();
    } else if (kind == O_STAGE) {
      const int head = min((int)(blockIdx.x / (gridDim.x / KV_HEADS)), KV_HEADS - 1);
      if constexpr (GATHER) {
        combine();
        stage_values(Tag<GROUP * DIM>(), [&](int b, int pair) {
          return __ldcg(reinterpret_cast<const float2*>(step.attended + (u64)b * HEADS * DIM + head * GROUP * DIM) + pair);
        });
      } else {
        float* weights = acc;
        for (int i = warp; i < BATCH * GROUP; i += WARPS) chunk_weights(step, lengths, i / GROUP, head * GROUP + i % GROUP, weights + i * step.chunks);
        __syncthreads();
        stage_values(Tag<GROUP * DIM>(), [&](int b, int pair) {
          const int h = 2 * pair / DIM, k = 2 * pair % DIM;
          return attended(step, lengths, b, head * GROUP + h, k, weights + (b * GROUP + h) * step.chunks);
        });
      }
    } else {
      constexpr int WIDTH = INTER / SPLITS;
      const int split = min((int)(blockIdx.x / (gridDim.x / SPLITS)), SPLITS - 1);
      stage_values(Tag<WIDTH>(), [&](int b, int pair) {
        return __ldcg(reinterpret_cast<const float2*>(step.inner + (u64)b * INTER + split * WIDTH) + pair);
      });
    }
    __syncthreads();
    mark(stage * 5);
    if (kind == QKV_STAGE) prefetch(layer.post_norm, HIDDEN);
    if (kind == DOWN_STAGE && stage + 1 < 4 * LAYERS) {
      prefetch(layers[stage / 4 + 1].input_norm, HIDDEN);
      prefetch(layers[stage / 4 + 1].bias, QKV);
    }
    products(stage, layer);
    mark(stage * 5 + 1);
    if (kind == HEAD_STAGE) break;
    barrier();
    mark(stage * 5 + 2);
    if (kind == QKV_STAGE) {
      attention(step, lengths, stage / 4, inputs);
      mark(stage * 5 + 3);
      barrier();
      mark(stage * 5 + 4);
    }
  }
  asm volatile("cp.async.wait_all;" ::: "memory");
  // The last block to leave makes the barrier ready for the next step.
  if (threadIdx.x == 0) {
    u32 left;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(left) : "l"(step.barrier + 1) : "memory");
    if (left == gridDim.x - 1) {
      step.barrier[0] = 0;
      step.barrier[1] = 0;
    }
  }
}
