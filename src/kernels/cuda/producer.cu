// What a warp fetches in a stage: with LORA, a before the weights and b after those of each round.
enum Phase { INNER, WEIGHTS, OUTER };

// A warp's loads: it goes through the tiles of all stages in order, STAGES - 1 slots ahead of the products.
struct Producer {
  const Step& step;
  const Layer* layers;
  const Share* shares;
  const Pair* pairs;
  const u16* inner_counts;
  u32 ring;                  // of this lane
  int lane, warp;
  int stage, row, left;      // slots left in the round
  const u8 *low, *high;      // next tile; `high`: rows 8 to 15 of 16-bit rows
  int column, columns;       // 16-bit rows, in slots
  long long skip;            // from the end of a row tile to the next
  Phase phase;
  bool pair;                 // the tiles are a pair's
  int item, adapter;
  int low_left, high_left;   // values of the rows of a pair; zero beyond

  __device__ Producer(const Step& step, const Layer* layers, const Share* shares, const Pair* pairs, const u16* inner_counts, u32 ring)
      : step(step), layers(layers), shares(shares), pairs(pairs), inner_counts(inner_counts), ring(ring + threadIdx.x % 32 * 16), lane(threadIdx.x % 32), warp(threadIdx.x / 32) {
    stage = row = left = item = adapter = 0;
    phase = LORA > 0 ? INNER : WEIGHTS;
    pair = false;
  }

  // To this warp's next tiles; after the last, `left` stays 0.
  __device__ __forceinline__ void advance() {
    while (left == 0 && stage <= 4 * LAYERS) {
      const int kind = kind_of(stage);
      const Share& share = shares[kind];
#if LORA > 0
      if (phase == INNER) {
        if (!inner(share)) phase = WEIGHTS;
        continue;
      }
      if (phase == OUTER) {
        if (outer(kind, share)) continue;
        row += share.round;
        phase = WEIGHTS;
      }
#endif
      if (row < share.rows) {
        weights(kind, share);
        item = adapter = 0;
        if (LORA > 0) phase = OUTER;
        else row += share.round;
      } else {
        stage++;
        row = item = 0;
        if (LORA > 0) phase = INNER;
      }
    }
  }

  __device__ __forceinline__ void weights(int kind, const Share& share) {
    const int last = share.rows - row <= share.round;
    const int next = share.tiles[last][warp];
    left = share.tiles[last][warp + 1] - next;
    pair = false;
    if (left == 0) return;
    const Layer& layer = layers[min(stage / 4, LAYERS - 1)];
    if (CODED && kind != HEAD_STAGE) {
      const u8* base = kind == QKV_STAGE ? layer.qkv : kind == O_STAGE ? layer.o : kind == GATE_UP_STAGE ? layer.gate_up : layer.down;
      const int rows = kind == O_STAGE || kind == DOWN_STAGE ? HIDDEN / 16 : 0;
      low = base + ((long long)(share.split * rows + share.first + row) * share.columns + next) * TILE_BYTES + lane * 16;
      return;
    }
    left *= DENSE_SLOTS;
    columns = share.columns * DENSE_SLOTS;
    column = next % share.columns * DENSE_SLOTS;
    const int g = lane / 4, t = lane % 4, r = share.first + row + next / share.columns;
    long long width = HIDDEN, first = (long long)r * 16 + g;
    if (kind == HEAD_STAGE) {
      low = high = step.head;
    } else if (kind == QKV_STAGE) {
      low = high = layer.qkv;
    } else if (kind == GATE_UP_STAGE) {
      low = layer.gate_up;
      high = layer.up;
      first = (long long)r * 8 + g;
    } else {
      low = high = kind == O_STAGE ? layer.o : layer.down;
      width = kind == O_STAGE ? HEADS * DIM : INTER;
    }
    const long long at = (first * width + ((long long)share.split * columns + column) * SLOT_COLUMNS) * 2 + t * 16;
    low += at;
    high += at + (kind == GATE_UP_STAGE ? 0 : 16 * width);
    skip = (kind == GATE_UP_STAGE ? 16 : 32) * width - (long long)columns * SLOT_COLUMNS * 2;
  }

#if LORA > 0
  // The warp's tile of the group's next rows; false if there are none.
  __device__ __forceinline__ bool inner(const Share& share) {
    const int group = warp / INNER_WARPS, member = warp % INNER_WARPS;
    const int tile = share.tile[group] + item++ * share.tile_step;
    if (tile >= inner_counts[stage]) return false;
    if (member >= share.part_tiles[group]) return true;
    const InnerUnit unit = find_inner(pairs, share, stage, tile);
    const int row = unit.tile * 16 + lane / 4, width = share.width * share.splits;
    const int first = share.split * share.width + (share.part_first[group] + member) * DENSE_COLUMNS;
    low = reinterpret_cast<const u8*>(unit.pair->a + (u64)row * width + first) + lane % 4 * 16;
    high = low + 16 * width;
    low_left = row < unit.pair->rank ? DENSE_COLUMNS : 0;
    high_left = row + 8 < unit.pair->rank ? DENSE_COLUMNS : 0;
    left = DENSE_SLOTS;
    pair = true;
    return true;
  }

  // The warp's next row tile, of one adapter after the other; false if there are none.
  __device__ __forceinline__ bool outer(int kind, const Share& share) {
    if (inner_counts[stage] == 0) return false;
    const int end = share.first + min(row + share.round, share.rows);
    int tile = first_outer(kind, share.split, share.first + row) + (item * WARPS + warp) * share.splits;
    if (tile >= end) return false;
    const int index = outer_pair(kind, tile), g = lane / 4, t = lane % 4;
    const Pair* all = pairs_of(pairs, share, adapter, stage);
    left = outer_tiles(all, kind, index) * DENSE_SLOTS;
    const Pair &one = all[index], &other = all[kind == GATE_UP_STAGE ? 1 : index];
    const u64 first = kind == GATE_UP_STAGE ? tile * 8 + g : tile * 16 + g, second = kind == GATE_UP_STAGE ? first : first + 8;
    low = reinterpret_cast<const u8*>(one.b + first * one.rank) + t * 16;
    high = reinterpret_cast<const u8*>(other.b + second * other.rank) + t * 16;
    low_left = one.rank - 8 * t;
    high_left = other.rank - 8 * t;
    pair = true;
    if (++adapter == step.adapter_count) {
      adapter = 0;
      item++;
    }
    return true;
  }
#endif

  // One slot.
  __device__ __forceinline__ void copy_tile(u32 to) {
    copy16(to, low);
    copy16(to + 512, low + 512);
    if (lane < 4) copy16(to + 1024, low + 1024);
    low += TILE_BYTES;
  }

  __device__ __forceinline__ void copy_rows(u32 to) {
#pragma unroll
    for (int i = 0; i < SLOT_COLUMNS / 32; i++) {
      copy16_line(to + 2 * i * 512, low + i * 64);
      copy16_line(to + (2 * i + 1) * 512, high + i * 64);
    }
    low += SLOT_COLUMNS * 2;
    high += SLOT_COLUMNS * 2;
    if (++column == columns) {
      column = 0;
      low += skip;
      high += skip;
    }
  }

  __device__ __forceinline__ void copy_pair(u32 to) {
#pragma unroll
    for (int i = 0; i < SLOT_COLUMNS / 32; i++) {
      copy16_or_zero(to + 2 * i * 512, low + i * 64, low_left > i * 32);
      copy16_or_zero(to + (2 * i + 1) * 512, high + i * 64, high_left > i * 32);
    }
    low += SLOT_COLUMNS * 2;
    high += SLOT_COLUMNS * 2;
    low_left -= SLOT_COLUMNS;
    high_left -= SLOT_COLUMNS;
  }

  // The next slot; always commits a group.
  __device__ __forceinline__ void fetch(int slot) {
    if (left == 0) advance();
    if (left > 0) {
      const u32 to = ring + slot * SLOT_BYTES;
      if (LORA > 0 && pair) copy_pair(to);
      else if (CODED && stage != 4 * LAYERS) copy_tile(to);
      else copy_rows(to);
      left--;
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  }
};
