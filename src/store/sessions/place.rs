//! Where the compact format keeps a user's sessions in Redis: in one of 16,384 buckets, under a tag.
//!
//! An index of its own for each user would take as much memory as half a session. So users share indexes: all users of
//! a bucket have one. Within it, a user's sessions are found by the tag, the first three characters of their ids. Two
//! users of one bucket have the same tag once in 262,144 times; then the user's id in the hash decides.
//!
//! Both numbers follow from the user's id alone. As long as there are sessions of this format, the function that makes
//! them must not change. It spreads any ids: those made here begin with the time, and imported ones may be numbers in a
//! row.
use uuid::Uuid;

/// Bits of a bucket's number.
const BUCKET_BITS: u32 = 14;
/// Bits of a tag, which are 3 characters of base64url.
pub(super) const TAG_BITS: u32 = 18;

/// The number of a user's bucket, below 16,384.
pub(super) fn bucket(user_id: Uuid) -> u16 {
    u16::try_from(place(user_id) >> TAG_BITS).expect("14 bits")
}

/// A user's tag, below 2¹⁸.
pub(super) fn tag(user_id: Uuid) -> u64 {
    place(user_id) & ((1 << TAG_BITS) - 1)
}

fn place(user_id: Uuid) -> u64 {
    let (high, low) = user_id.as_u64_pair();
    mix(mix(high) ^ low) >> (64 - BUCKET_BITS - TAG_BITS)
}

/// The last step of `MurmurHash3`, after which every bit of the input has changed half of the bits.
fn mix(mut bits: u64) -> u64 {
    bits ^= bits >> 33;
    bits = bits.wrapping_mul(0xff51_afd7_ed55_8ccd);
    bits ^= bits >> 33;
    bits = bits.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    bits ^ (bits >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_never_change() {
        for (user_id, expected) in [
            ("00000000-0000-0000-0000-000000000000", (0, 0)),
            ("00000000-0000-0000-0000-000000000001", (0x2d15, 0x2_bcfc)),
            ("01939c2e-7f3a-7c41-9d2b-5e8f10a4b6c7", (0x2b90, 0x3_acdc)),
            ("ffffffff-ffff-ffff-ffff-ffffffffffff", (0x0ee3, 0x1_08f7)),
        ] {
            let user_id: Uuid = user_id.parse().expect("an id");
            assert_eq!((bucket(user_id), tag(user_id)), expected, "{user_id}");
        }
    }

    /// With 20 users per bucket on average, the fullest has about 45 if they are spread as if by chance.
    #[test]
    fn all_kinds_of_ids_are_spread() {
        const USERS: u128 = 20 << BUCKET_BITS;
        const MADE_AT: u128 = 0x0193_9c2e_7f3a_7000_8000_0000_0000_0000;
        for kind in ["one after the other", "numbers in front", "both halves alike", "a millisecond apart"] {
            let id = |n| match kind {
                "one after the other" => n,
                "numbers in front" => n << 96,
                "both halves alike" => (n << 64) | n,
                _ => MADE_AT + (n << 80),
            };
            let mut buckets = vec![0_u32; 1 << BUCKET_BITS];
            let mut tags = std::collections::HashSet::new();
            for n in 0..USERS {
                let user_id = Uuid::from_u128(id(n));
                buckets[usize::from(bucket(user_id))] += 1;
                tags.insert(tag(user_id));
            }
            let (least, most) = (buckets.iter().min().expect("buckets"), buckets.iter().max().expect("buckets"));
            assert!(*least > 0 && *most < 60, "{kind}: from {least} to {most} users in a bucket");
            // By chance 71 % of all tags are in use.
            assert!(tags.len() > 150_000, "{kind}: {} tags", tags.len());
        }
    }
}
