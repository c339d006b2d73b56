// linear, grouped_linear, and several of them at once.
#include "inputs.h"
#include "products.h"
#include "team.h"

namespace {
constexpr long TILE_ROWS = 64, TILE_COLUMNS = packed::MOST_COLUMNS;
constexpr long RUNS = 8;  // that each thread computes: long ones are read faster, short ones are shared out more evenly

struct Tile {  // of a product: columns from n on of group g, rows from t on
  long product, g, n, t;
};

// One product while its tiles are computed.
class Running {
 public:
  Running(const Product& product, long T)
      : p_(product), T_(T), N_(product.w->rows / product.groups),
        inputs_(*product.w, N_ % packed::TILE == 0 || product.groups == 1 ? product.trip : rounding::NO_TRIP,
                T * product.groups) {}

  long num_prepared() const { return inputs_.is_prepared() ? T_ * p_.groups : 0; }
  long work() const { return (p_.w->format == packed::FP32 ? 4 : 1) * T_ * p_.w->rows * p_.w->columns; }

  void add_tiles(long number, std::vector<Tile>& tiles) const {
    for (long g = 0; g < p_.groups; g++)
      for (long n = 0; n < N_; n += TILE_COLUMNS)
        for (long t = 0; t < T_; t += TILE_ROWS) tiles.push_back({number, g, n, t});
  }

  void prepare(long i) { inputs_.put(i, p_.x + i * p_.w->columns); }

  void compute(const Tile& tile, Floats& room) const {
    const long G = p_.groups, count = std::min(TILE_ROWS, T_ - tile.t);
    long numbers[TILE_ROWS];
    for (long m = 0; m < count; m++) numbers[m] = (tile.t + m) * G + tile.g;
    float* out = p_.y + (tile.t * G + tile.g) * N_ + tile.n;
    inputs_.multiply(p_.x, numbers, count, *p_.w, 0, tile.g * N_ + tile.n, std::min(TILE_COLUMNS, N_ - tile.n), room,
                     [&](long m, long i, float v) { out[m * G * N_ + i] = v; });
  }

 private:
  const Product p_;
  long T_, N_;
  Inputs inputs_;
};
}  // namespace

void multiply(const std::vector<Product>& products, long T, int threads) {
  std::vector<Running> running;
  std::vector<Tile> tiles;
  long work = 0, most = 0;
  running.reserve(products.size());
  for (const Product& product : products) {
    running.emplace_back(product, T);
    running.back().add_tiles((long)running.size() - 1, tiles);
    work += running.back().work(), most = std::max(most, running.back().num_prepared());
  }
  const long num_tiles = (long)tiles.size();
  team::in_team(threads, work, [&] {
    Floats room;
    if (most)
      team::share(most, [&](long i) {
        for (Running& product : running)
          if (i < product.num_prepared()) product.prepare(i);
      });
    team::share_by(std::max(1L, num_tiles / (RUNS * threads)), num_tiles,
                   [&](long i) { running[tiles[i].product].compute(tiles[i], room); });
  });
}

API void dsv4_linear(const float* x, const Weight* w, float* y, long T, long G, int trip, int threads) {
  multiply({{x, w, y, trip, G}}, T, threads);
}
