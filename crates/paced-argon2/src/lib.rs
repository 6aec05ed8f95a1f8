//! Argon2 (RFC 9106) that pauses: it fills its memory a stretch at a time and calls a function that the caller gives
//! between two stretches, so that other threads can run.
//!
//! Parameters, limits and stored strings are those of the crate `argon2`. Only the schedule differs: one thread fills
//! all lanes, and the memory is wiped at the end. The tests compare every algorithm and version with `argon2`.
//!
//! `README.md` beside `Cargo.toml` says why `argon2` alone isn't enough, and when this crate can be dropped.
//!
//! ```
//! use argon2::{Algorithm, Params, Version};
//! use paced_argon2::{Block, Input};
//!
//! # fn main() -> argon2::Result<()> {
//! let params = Params::new(19 * 1024, 2, 1, Some(32))?;
//! let mut memory = vec![Block::ZERO; params.block_count()];
//! let input = Input {
//!     algorithm: Algorithm::Argon2id,
//!     version: Version::V0x13,
//!     params: &params,
//!     password: b"correct horse battery staple",
//!     salt: b"sixteen bytes or more",
//!     secret: b"",
//! };
//! let mut tag = [0; 32];
//! input.hash(&mut tag, &mut memory, &mut std::thread::yield_now);
//! # Ok(())
//! # }
//! ```
use std::iter;

use argon2::{Algorithm, Params, Version};
use blake2::digest::Output;
use blake2::digest::block_api::{UpdateCore as _, VariableOutputCore as _};
use blake2::digest::block_buffer::LazyBuffer;
use blake2::{Blake2b512, Blake2bVarCore, Digest as _};
use multiversion::multiversion;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};
use zeroize::Zeroize as _;

/// The most blocks that are filled between two pauses: about 50 µs of work. One block of addresses (RFC 9106
/// §3.4.1.2) serves this many.
pub const STRETCH: usize = WORDS;

/// The most blocks that are wiped between two pauses: about 50 µs as well.
const WIPED_AT_ONCE: usize = 4 * STRETCH;
/// 64-bit words in a block of 1 KiB.
const WORDS: usize = 128;
/// RFC 9106 §3.4: a lane is divided into four slices. No slice begins before every lane has finished the previous one.
const SLICES: usize = 4;
/// The lower half of a word.
const LOW: u64 = 0xffff_ffff;

/// A block of Argon2's memory: 1 KiB. Memory that was mapped can be seen as blocks with `zerocopy`.
#[derive(Clone, Copy, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[expect(missing_debug_implementations, reason = "passwords can be tried with what is in it")]
#[repr(align(64))]
pub struct Block([u64; WORDS]);

/// What is hashed, and how.
#[expect(missing_debug_implementations, reason = "it holds a password")]
pub struct Input<'a> {
    /// Argon2d, Argon2i or Argon2id.
    pub algorithm: Algorithm,
    /// 0x13, or 0x10 for old hashes.
    pub version: Version,
    /// Memory, passes, lanes, and associated data.
    pub params: &'a Params,
    /// RFC 9106 §3.1: P.
    pub password: &'a [u8],
    /// RFC 9106 §3.1: S.
    pub salt: &'a [u8],
    /// RFC 9106 §3.1: K, also called pepper. Empty if there is none.
    pub secret: &'a [u8],
}

impl Input<'_> {
    /// Fills `output`, whose length is part of the hash. Calls `pause` whenever [`STRETCH`] blocks are filled, and
    /// often enough while it wipes `blocks` at the end.
    ///
    /// # Panics
    ///
    /// With fewer `blocks` than [`Params::block_count`].
    // `dyn`: a generic function would be compiled as part of its caller, without this crate's optimisation in debug
    // builds.
    pub fn hash(&self, output: &mut [u8], blocks: &mut [Block], pause: &mut dyn FnMut()) {
        let mut memory = Memory::of(self.params, blocks);
        self.begin(output.len(), &mut memory);
        for pass in 0..self.params.t_cost() {
            for slice in 0..SLICES {
                for lane in 0..memory.lanes {
                    self.fill(&mut memory, Segment { pass, slice, lane }, pause);
                }
            }
        }
        long_hash(&[&memory.last().bytes()], output);
        memory.wipe(pause);
    }

    /// RFC 9106 §3.2, steps 1 to 4: H0, and from it the first two blocks of each lane.
    fn begin(&self, output: usize, memory: &mut Memory<'_>) {
        let mut state = Blake2b512::new();
        for number in [self.params.p_cost(), le32(output), self.params.m_cost(), self.params.t_cost()] {
            state.update(number.to_le_bytes());
        }
        for number in [self.version as u32, self.algorithm as u32] {
            state.update(number.to_le_bytes());
        }
        for text in [self.password, self.salt, self.secret, self.params.data()] {
            state.update(le32(text.len()).to_le_bytes());
            state.update(text);
        }
        // With H0, or the blocks made from it, an attacker can try passwords without Argon2's cost. Wiping H0 here is
        // not enough: see `Memory::wipe`. The state of the hash function wipes itself.
        let mut h0 = state.finalize();
        for lane in 0..memory.lanes {
            for column in 0..2 {
                let mut bytes = [0; WORDS * 8];
                let place = [le32(column).to_le_bytes(), le32(lane).to_le_bytes()];
                long_hash(&[&h0, place.as_flattened()], &mut bytes);
                memory.blocks[lane * memory.lane_length + column] = Block::from_bytes(&bytes);
                bytes.zeroize();
            }
        }
        h0.zeroize();
    }

    /// RFC 9106 §3.2, steps 5 and 6, for one segment.
    fn fill(&self, memory: &mut Memory<'_>, segment: Segment, pause: &mut dyn FnMut()) {
        let Segment { pass, slice, lane } = segment;
        let independent = match self.algorithm {
            Algorithm::Argon2d => false,
            Algorithm::Argon2i => true,
            Algorithm::Argon2id => pass == 0 && slice < SLICES / 2,
        };
        // Version 0x10 overwrites in every pass.
        let overwrites = pass == 0 || self.version == Version::V0x10;
        // RFC 9106 §3.4.1.2: the places of the data-independent references are computed from this block.
        let mut seed = Block::ZERO;
        let place = [u64::from(pass), lane as u64, slice as u64, memory.blocks.len() as u64];
        seed.0[..4].copy_from_slice(&place);
        seed.0[4..6].copy_from_slice(&[u64::from(self.params.t_cost()), self.algorithm as u64]);

        for start in (0..memory.segment_length).step_by(STRETCH) {
            let addresses = independent.then(|| {
                seed.0[6] += 1;
                compress(&Block::ZERO, &compress(&Block::ZERO, &seed))
            });
            // The first two blocks of a lane are there already.
            let first = if pass == 0 && slice == 0 { start.max(2) } else { start };
            for index in first..(start + STRETCH).min(memory.segment_length) {
                let column = slice * memory.segment_length + index;
                let current = lane * memory.lane_length + column;
                let previous = if column == 0 { current + memory.lane_length - 1 } else { current - 1 };
                let pseudo_random =
                    addresses.as_ref().map_or(memory.blocks[previous].0[0], |block| block.0[index - start]);
                let reference = memory.reference(segment, index, pseudo_random);
                let new = compress(&memory.blocks[previous], &memory.blocks[reference]);
                if overwrites {
                    memory.blocks[current] = new;
                } else {
                    memory.blocks[current].xor(&new);
                }
            }
            pause();
        }
    }
}

/// The matrix of blocks, lane after lane.
struct Memory<'a> {
    blocks: &'a mut [Block],
    lanes: usize,
    lane_length: usize,
    segment_length: usize,
}

#[derive(Clone, Copy)]
struct Segment {
    pass: u32,
    slice: usize,
    lane: usize,
}

impl<'a> Memory<'a> {
    fn of(params: &Params, blocks: &'a mut [Block]) -> Self {
        let lanes = params.p_cost() as usize;
        let blocks = &mut blocks[..params.block_count()];
        let lane_length = blocks.len() / lanes;
        Self { blocks, lanes, lane_length, segment_length: lane_length / SLICES }
    }

    /// RFC 9106 §3.4.2: the block that the one at `index` of the segment refers to.
    fn reference(&self, Segment { pass, slice, lane }: Segment, index: usize, pseudo_random: u64) -> usize {
        let (j1, j2) = (pseudo_random & LOW, pseudo_random >> 32);
        let of_lane = if pass == 0 && slice == 0 { lane } else { to_usize(j2 % self.lanes as u64) };
        let (begin, finished) = if pass == 0 {
            (0, slice * self.segment_length)
        } else {
            ((slice + 1) % SLICES * self.segment_length, self.lane_length - self.segment_length)
        };
        // Every finished block except the previous one, which goes into the new block anyway.
        let area = if of_lane == lane { finished + index - 1 } else { finished - usize::from(index == 0) } as u64;
        let relative = area - 1 - ((area * ((j1 * j1) >> 32)) >> 32);
        of_lane * self.lane_length + (begin + to_usize(relative)) % self.lane_length
    }

    /// Wipes the matrix, because each pass can be undone. A pass adds to a block, by XOR, what follows from two other
    /// blocks, and those two are still in the matrix. So the last state leads back to the first two blocks of each
    /// lane. An attacker who has those can check a guessed password with a few `BLAKE2b`. After a single pass they are
    /// there unchanged.
    fn wipe(&mut self, pause: &mut dyn FnMut()) {
        for stretch in self.blocks.chunks_mut(WIPED_AT_ONCE) {
            stretch.fill(Block::ZERO);
            pause();
        }
        // Keeps the compiler from leaving out writes that nobody reads.
        std::hint::black_box(&mut *self.blocks);
    }

    /// RFC 9106 §3.2, step 7: the last blocks of all lanes.
    fn last(&self) -> Block {
        let mut last = Block::ZERO;
        for lane in self.blocks.chunks_exact(self.lane_length) {
            last.xor(&lane[self.lane_length - 1]);
        }
        last
    }
}

impl Block {
    /// A block of zeros.
    pub const ZERO: Self = Self([0; WORDS]);

    fn from_bytes(bytes: &[u8; WORDS * 8]) -> Self {
        let (words, _) = bytes.as_chunks();
        Self(std::array::from_fn(|word| u64::from_le_bytes(words[word])))
    }

    fn bytes(&self) -> [u8; WORDS * 8] {
        let mut bytes = [0; WORDS * 8];
        let (words, _) = bytes.as_chunks_mut();
        for (bytes, word) in words.iter_mut().zip(self.0) {
            *bytes = word.to_le_bytes();
        }
        bytes
    }

    #[inline]
    fn xor(&mut self, other: &Self) {
        for (word, other) in self.0.iter_mut().zip(&other.0) {
            *word ^= other;
        }
    }
}

/// RFC 9106 §3.5: G. It is compiled a second time for AVX2, which halves the time of a hash on processors that have it.
#[multiversion(targets("x86_64+avx2"))]
fn compress(x: &Block, y: &Block) -> Block {
    let mut r = *x;
    r.xor(y);
    let mut z = r;
    // Macros that work in place: the compiler turns this form into vector instructions.
    macro_rules! quarter {
        ($v:ident, $a:expr, $b:expr, $c:expr, $d:expr) => {
            $v[$a] = add($v[$a], $v[$b]);
            $v[$d] = ($v[$d] ^ $v[$a]).rotate_right(32);
            $v[$c] = add($v[$c], $v[$d]);
            $v[$b] = ($v[$b] ^ $v[$c]).rotate_right(24);
            $v[$a] = add($v[$a], $v[$b]);
            $v[$d] = ($v[$d] ^ $v[$a]).rotate_right(16);
            $v[$c] = add($v[$c], $v[$d]);
            $v[$b] = ($v[$b] ^ $v[$c]).rotate_right(63);
        };
    }
    macro_rules! permute {
        ($v:ident, $at:expr) => {
            quarter!($v, $at(0), $at(4), $at(8), $at(12));
            quarter!($v, $at(1), $at(5), $at(9), $at(13));
            quarter!($v, $at(2), $at(6), $at(10), $at(14));
            quarter!($v, $at(3), $at(7), $at(11), $at(15));
            quarter!($v, $at(0), $at(5), $at(10), $at(15));
            quarter!($v, $at(1), $at(6), $at(11), $at(12));
            quarter!($v, $at(2), $at(7), $at(8), $at(13));
            quarter!($v, $at(3), $at(4), $at(9), $at(14));
        };
    }
    for row in z.0.chunks_exact_mut(16) {
        permute!(row, (|word: usize| word));
    }
    let words = &mut z.0;
    for column in 0..8 {
        permute!(words, (|word: usize| 16 * (word / 2) + 2 * column + word % 2));
    }
    z.xor(&r);
    z
}

/// RFC 9106 §3.6: `BLAKE2b`'s addition, with a multiplication.
#[inline]
fn add(x: u64, y: u64) -> u64 {
    x.wrapping_add(y).wrapping_add(2_u64.wrapping_mul((x & LOW).wrapping_mul(y & LOW)))
}

/// RFC 9106 §3.3: H', a hash of any length.
fn long_hash(parts: &[&[u8]], output: &mut [u8]) {
    let length = le32(output.len()).to_le_bytes();
    let parts = iter::once(length.as_slice()).chain(parts.iter().copied());
    if output.len() <= 64 {
        return blake2b(parts, output);
    }
    let mut hash = [0; 64];
    blake2b(parts, &mut hash);
    let mut rest = output;
    while rest.len() > 64 {
        let (half, behind) = rest.split_at_mut(32);
        half.copy_from_slice(&hash[..32]);
        rest = behind;
        let previous = hash;
        blake2b(iter::once(previous.as_slice()), &mut hash[..rest.len().min(64)]);
    }
    rest.copy_from_slice(&hash[..rest.len()]);
    hash.zeroize();
}

/// `BLAKE2b` (RFC 7693) with an output of 64 bytes at most.
fn blake2b<'a>(parts: impl Iterator<Item = &'a [u8]>, output: &mut [u8]) {
    let mut core = Blake2bVarCore::new(output.len()).expect("64 bytes at most");
    let mut buffer = LazyBuffer::new(&[]);
    for part in parts {
        buffer.digest_blocks(part, |blocks| core.update_blocks(blocks));
    }
    let mut hash = Output::<Blake2bVarCore>::default();
    core.finalize_variable_core(&mut buffer, &mut hash);
    output.copy_from_slice(&hash[..output.len()]);
}

#[expect(clippy::cast_possible_truncation, reason = "a place within the memory")]
fn to_usize(place: u64) -> usize {
    place as usize
}

fn le32(length: usize) -> u32 {
    u32::try_from(length).expect("a length within the limits of the crate argon2")
}

#[cfg(test)]
mod tests {
    use argon2::{Argon2, AssociatedData, ParamsBuilder};
    use proptest::prelude::*;

    use super::{Algorithm, Block, Input, Params, STRETCH, Version, WIPED_AT_ONCE, WORDS};

    /// Returns the hash and the number of pauses.
    fn hash(input: &Input<'_>, length: usize) -> (Vec<u8>, usize) {
        let (mut output, mut pauses) = (vec![0; length], 0);
        input.hash(&mut output, &mut vec![Block::ZERO; input.params.block_count()], &mut || pauses += 1);
        (output, pauses)
    }

    /// RFC 9106 §5.1 to §5.3.
    #[test]
    fn rfc_9106_test_vectors() {
        let mut params = ParamsBuilder::new();
        params.m_cost(32).t_cost(3).p_cost(4).output_len(32).data(AssociatedData::new(&[4; 12]).unwrap());
        let params = params.build().unwrap();
        for (algorithm, tag) in [
            (Algorithm::Argon2d, "512b391b6f1162975371d30919734294f868e3be3984f3c1a13a4db9fabe4acb"),
            (Algorithm::Argon2i, "c814d9d1dc7f37aa13f0d77f2494bda1c8de6b016dd388d29952a4c4672b6ce8"),
            (Algorithm::Argon2id, "0d640df58d78766c08c037a34a8b53c9d01ef0452d75b65eb52520e96b01e659"),
        ] {
            let (password, salt, secret) = (&[1; 32], &[2; 16], &[3; 8]);
            let input = Input { algorithm, version: Version::V0x13, params: &params, password, salt, secret };
            assert_eq!(hex::encode(hash(&input, 32).0), tag, "{algorithm}");
        }
    }

    #[test]
    fn others_may_run_after_every_stretch() {
        let params = Params::new(8 * 1024, 2, 1, Some(32)).unwrap();
        let (algorithm, version) = (Algorithm::Argon2id, Version::V0x13);
        let input = Input { algorithm, version, params: &params, password: b"", salt: b"somesalt", secret: b"" };
        assert_eq!(hash(&input, 32).1, 2 * 8 * 1024 / STRETCH + 8 * 1024 / WIPED_AT_ONCE);
    }

    /// Also covers one pass, which never overwrites the blocks against which passwords can be tried.
    #[test]
    fn nothing_stays_in_memory() {
        for passes in 1..3 {
            let params = Params::new(1000, passes, 3, Some(32)).unwrap();
            let (algorithm, version) = (Algorithm::Argon2id, Version::V0x13);
            let input = Input { algorithm, version, params: &params, password: b"", salt: b"somesalt", secret: b"" };
            let mut blocks = vec![Block::ZERO; params.block_count()];
            input.hash(&mut [0; 32], &mut blocks, &mut || {});
            assert!(blocks.iter().all(|block| block.0 == [0; WORDS]));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn the_crate_argon2_computes_the_same(
            algorithm in prop::sample::select(vec![Algorithm::Argon2d, Algorithm::Argon2i, Algorithm::Argon2id]),
            version in prop::sample::select(vec![Version::V0x10, Version::V0x13]),
            (lanes, memory) in (1_u32..6).prop_flat_map(|lanes| (Just(lanes), 8 * lanes..4096)),
            passes in 1_u32..4,
            length in 4_usize..200,
            password in prop::collection::vec(any::<u8>(), 0..200),
            salt in prop::collection::vec(any::<u8>(), 8..64),
        ) {
            let params = Params::new(memory, passes, lanes, Some(length)).unwrap();
            let mut expected = vec![0; length];
            let theirs = Argon2::new(algorithm, version, params.clone());
            theirs.hash_password_into(&password, &salt, &mut expected).unwrap();
            let input = Input { algorithm, version, params: &params, password: &password, salt: &salt, secret: b"" };
            prop_assert_eq!(hash(&input, length).0, expected);
        }
    }
}
