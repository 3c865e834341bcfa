// Products of a warpgroup (wgmma): 64 rows, of which each warp computes 16. Warps run apart here;
// hopper_complaint compares what the four of a warpgroup have started.
#include "hopper.h"

namespace simt {

namespace {

constexpr int kDepth = 16;  // of one instruction
// What registers hold while a product has them: a signalling NaN, which any arithmetic changes.
constexpr uint32_t kInFlight = 0x7fa5a5a5;

float value_of(uint16_t bits, bool bfloat16) {
  return bfloat16 ? bfloat_value({bits}) : half_value({bits});
}

// Where element (row of a or column of b, k) of a described operand lies.
class Operand {
 public:
  Operand(uint64_t descriptor, bool transposed)
      : address_(field(descriptor, 0)),
        leading_(field(descriptor, 16)),
        stride_(field(descriptor, 32)),
        transposed_(transposed) {
    if (descriptor >> 62 != 1) fail("wgmma: only the 128-byte swizzle is modelled");
    if ((descriptor >> 49 & 7) != 0) fail("wgmma: base offset is not modelled");
    if (address_ % 1024 >= (transposed ? 16 : 128))
      fail("wgmma: the operand does not start at a multiple of 1024 bytes");
  }

  uint32_t at(int index, int k) const {
    const uint32_t i = static_cast<uint32_t>(index), j = static_cast<uint32_t>(k);
    const uint32_t address =
        transposed_ ? address_ + i / 64 * leading_ + j / 8 * stride_ + j % 8 * 128 + i % 64 * 2
                    : address_ + i / 8 * stride_ + i % 8 * 128 + j * 2;
    return address ^ (address >> 3 & 0x70);
  }

 private:
  static uint32_t field(uint64_t descriptor, int shift) {
    return static_cast<uint32_t>(descriptor >> shift & 0x3fff) << 4;
  }
  uint32_t address_, leading_, stride_;
  bool transposed_;
};

// Elements [first, first + count) x kDepth; checks every access, and reads only where `out` is
// given.
void gather(const Operand& operand, int first, int count, bool transposed, bool bfloat16,
            float* out) {
  for (int i = 0; i < count; ++i) {
    for (int k = 0; k < kDepth; ++k) {
      const uint32_t address = operand.at(first + i, k);
      const char* memory = shared_at(address, 2, 2, "wgmma");
      if ((transposed ? i : k) % 8 == 0) note_read(address & ~15u, 16, "wgmma", true);
      if (out == nullptr) continue;
      uint16_t bits;
      memcpy(&bits, memory, 2);
      out[i * kDepth + k] = value_of(bits, bfloat16);
    }
  }
}

void gather_held(const Product& product, float* out) {
  for (int lane = 0; lane < 32; ++lane) {
    for (int r = 0; r < 4; ++r) {
      float* pair = out + (lane / 4 + 8 * (r & 1)) * kDepth + 2 * (lane % 4) + 8 * (r >> 1);
      pair[0] = value_of(static_cast<uint16_t>(product.a[lane][r]), product.bfloat16);
      pair[1] = value_of(static_cast<uint16_t>(product.a[lane][r] >> 16), product.bfloat16);
    }
  }
}

int first_row() { return machine.warp_index() % 4 * 16; }

Products& mine() { return hopper.products[static_cast<size_t>(machine.warp_index())]; }

// Products of 16-bit elements are exact in float32; the sum is rounded after every addition.
void run(const Product& product) {
  static float a[16 * kDepth], b[256 * kDepth];
  if (product.held()) {
    gather_held(product, a);
  } else {
    gather(Operand(product.descriptor_a, product.transposed_a), first_row(), 16,
           product.transposed_a, product.bfloat16, a);
  }
  gather(Operand(product.descriptor_b, product.transposed_b), 0, product.columns,
         product.transposed_b, product.bfloat16, b);
  const int each = product.columns / 2;
  float* d = mine().in_flight[product.d[0]].data();
  for (int lane = 0; lane < 32; ++lane) {
    for (int e = 0; e < each; ++e) {
      const float* row = a + (lane / 4 + 8 * (e / 2 % 2)) * kDepth;
      const float* column = b + (e / 4 * 8 + 2 * (lane % 4) + e % 2) * kDepth;
      float sum = 0.0f;
      for (int k = 0; k < kDepth; ++k) sum += row[k] * column[k];
      float& x = d[lane * each + e];
      x = product.add ? x + sum : sum;
    }
  }
}

bool in_use(const Products& products, const float* d) {
  for (const auto& group : products.groups) {
    for (const Product& product : group) {
      if (product.d[0] == d) return true;
    }
  }
  return false;
}

// Accumulators leave the registers: nobody may read them until they come back.
void take_accumulators(Products& products, const Product& product) {
  const size_t each = static_cast<size_t>(product.columns) / 2;
  std::vector<float>& d = products.in_flight[product.d[0]];
  if (!d.empty()) return;
  d.resize(32 * each);
  for (size_t lane = 0; lane < 32; ++lane) {
    memcpy(&d[lane * each], product.d[lane], each * sizeof(float));
    if (!config.naive) std::fill_n(reinterpret_cast<uint32_t*>(product.d[lane]), each, kInFlight);
  }
}

void return_accumulators(Products& products, const Product& product) {
  const auto found = products.in_flight.find(product.d[0]);
  if (found == products.in_flight.end() || in_use(products, product.d[0])) return;
  const size_t each = static_cast<size_t>(product.columns) / 2;
  for (size_t lane = 0; lane < 32; ++lane) {
    const auto* held = reinterpret_cast<const uint32_t*>(product.d[lane]);
    if (!config.naive && std::any_of(held, held + each, [](uint32_t x) { return x != kInFlight; }))
      fail("wgmma: accumulators were written while the product was running");
    memcpy(product.d[lane], &found->second[lane * each], each * sizeof(float));
  }
  products.in_flight.erase(found);
}

void note(Products& products, uint64_t value) {
  products.history = (products.history ^ value) * 0x9E3779B97F4A7C15ull + 1;
}

struct ProductSlot {
  float* d;
  const uint32_t* a;
  uint64_t descriptor_a, descriptor_b;
};

}  // namespace

void product(float* d, const uint32_t* a, uint64_t descriptor_a, uint64_t descriptor_b,
             const Product& shape) {
  ProductSlot slot{d, a, descriptor_a, descriptor_b};
  collective(0xffffffffu, "wgmma", &slot, [&shape](void** slots) {
    Products& products = mine();
    if (!products.fenced) fail("wgmma: no wgmma.fence since the last wait");
    const ProductSlot& first = *static_cast<ProductSlot*>(slots[0]);
    Product product = shape;
    product.descriptor_a = first.descriptor_a;
    product.descriptor_b = first.descriptor_b;
    for (int lane = 0; lane < 32; ++lane) {
      const ProductSlot& other = *static_cast<ProductSlot*>(slots[lane]);
      if (other.descriptor_a != first.descriptor_a || other.descriptor_b != first.descriptor_b)
        fail("wgmma: a descriptor differs between lanes");
      product.d[lane] = other.d;
      product.a[lane] = other.a;
    }
    take_accumulators(products, product);
    if (!product.held())
      gather(Operand(product.descriptor_a, product.transposed_a), first_row(), 16,
             product.transposed_a, product.bfloat16, nullptr);
    gather(Operand(product.descriptor_b, product.transposed_b), 0, product.columns,
           product.transposed_b, product.bfloat16, nullptr);
    note(products, product.descriptor_a);
    note(products, product.descriptor_b);
    products.open.push_back(product);
    ++stats.wide_products;
    stats.multiplies += product.columns / 8;
  });
}

void product_fence() {
  collective(0xffffffffu, "wgmma.fence", nullptr, [](void**) { mine().fenced = true; });
}

void product_commit() {
  collective(0xffffffffu, "wgmma.commit_group", nullptr, [](void**) {
    mine().groups.push_back(std::move(mine().open));
    mine().open.clear();
  });
}

void product_wait(size_t groups) {
  collective(0xffffffffu, "wgmma.wait_group", nullptr, [groups](void**) {
    Products& products = mine();
    while (products.groups.size() > groups) {
      const std::vector<Product> group = std::move(products.groups.front());
      products.groups.erase(products.groups.begin());
      for (const Product& product : group) run(product);
      for (const Product& product : group) return_accumulators(products, product);
    }
    products.fenced = false;
  });
}

}  // namespace simt
