// The random numbers of the Python package: numpy's SeedSequence, the Mersenne Twister, and torch's normal numbers.
// So seed 7 draws here what `mnif-sample --seed 7` draws.

const MASK = 0xffffffffn;

// 32-bit words of whole numbers (BigInt, at least 0), the low ones first, as numpy's SeedSequence takes them.
function wordsOf(numbers) {
  const words = [];
  for (const number of numbers) {
    let rest = number;
    do {
      words.push(Number(rest & MASK));
      rest >>= 32n;
    } while (rest > 0n);
  }
  return words;
}

// `count` words from SeedSequence(numbers).generate_state(count, uint32): O'Neill's seed_seq mixing, with a pool of 4.
function seedWords(numbers, count) {
  const words = wordsOf(numbers);
  const pool = [0, 0, 0, 0];
  let factor = 0x43b0d7e5;
  const hashed = (value) => {
    let word = value ^ factor;
    factor = Math.imul(factor, 0x931e8875);
    word = Math.imul(word, factor);
    return (word ^ (word >>> 16)) >>> 0;
  };
  const mixed = (into, from) => {
    const word = (Math.imul(into, 0xca01f9dd) - Math.imul(from, 0x4973f715)) >>> 0;
    return (word ^ (word >>> 16)) >>> 0;
  };
  for (let k = 0; k < 4; k += 1) pool[k] = hashed(words[k] || 0);
  for (let from = 0; from < 4; from += 1)
    for (let into = 0; into < 4; into += 1) if (into !== from) pool[into] = mixed(pool[into], hashed(pool[from]));
  for (let from = 4; from < words.length; from += 1)
    for (let into = 0; into < 4; into += 1) pool[into] = mixed(pool[into], hashed(words[from]));
  factor = 0x8b51f9dd;
  return Array.from({ length: count }, (_, k) => {
    let word = pool[k % 4] ^ factor;
    factor = Math.imul(factor, 0x58f38ded);
    word = Math.imul(word, factor);
    return (word ^ (word >>> 16)) >>> 0;
  });
}

// `mnif_nerf.random.stream`: the seed (BigInt) of a stream of its own. `purpose`: the hash of its name.
function streamSeed(seed, purpose, numbers) {
  const [low, high] = seedWords([seed, purpose, BigInt(numbers.length), ...numbers.map(BigInt)], 2);
  return ((BigInt(high) << 32n) | BigInt(low)) >> 1n;
}

// MT19937 (Matsumoto and Nishimura 1998): a function that gives 32-bit words.
function mersenneTwister(seed) {
  const state = new Uint32Array(624);
  state[0] = seed;
  for (let k = 1; k < 624; k += 1) state[k] = Math.imul(1812433253, state[k - 1] ^ (state[k - 1] >>> 30)) + k;
  let at = 624;
  const renew = () => {
    for (let k = 0; k < 624; k += 1) {
      const word = (state[k] & 0x80000000) | (state[(k + 1) % 624] & 0x7fffffff);
      state[k] = state[(k + 397) % 624] ^ (word >>> 1) ^ (word & 1 ? 0x9908b0df : 0);
    }
    at = 0;
  };
  return () => {
    if (at === 624) renew();
    let word = state[at];
    at += 1;
    word ^= word >>> 11;
    word ^= (word << 7) & 0x9d2c5680;
    word ^= (word << 15) & 0xefc60000;
    return (word ^ (word >>> 18)) >>> 0;
  };
}

// Normal numbers of the first sample of `seed` (BigInt), as torch draws them on a CPU: 16 at a time from uniform numbers
// of 24 bits (Box and Muller), the last 16 anew where they do not come out even; fewer than 16 from 53 bits.
function normalNumbers(seed, count) {
  const [high, low] = seedWords([seed, 0n], 2);
  const next = mersenneTwister(((high << 31) ^ low) >>> 0);
  const out = new Float32Array(count);
  const polar = (share, angle) => {
    const radius = Math.sqrt(-2 * Math.log1p(-share));
    return [radius * Math.cos(2 * Math.PI * angle), radius * Math.sin(2 * Math.PI * angle)];
  };
  if (count < 16) {
    const fine = () => Number(((BigInt(next()) << 32n) | BigInt(next())) & ((1n << 53n) - 1n)) / 2 ** 53;
    for (let k = 0; k < count; k += 2) {
      const angle = fine();
      out.set(polar(fine(), angle).slice(0, count - k), k);
    }
    return out;
  }
  const coarse = () => (next() & 0xffffff) / 2 ** 24;
  const transform = (first) => {
    for (let k = first; k < first + 8; k += 1) [out[k], out[k + 8]] = polar(out[k], out[k + 8]);
  };
  for (let k = 0; k < count; k += 1) out[k] = coarse();
  for (let first = 0; first + 16 <= count; first += 16) transform(first);
  if (count % 16) {
    for (let k = count - 16; k < count; k += 1) out[k] = coarse();
    transform(count - 16);
  }
  return out;
}
