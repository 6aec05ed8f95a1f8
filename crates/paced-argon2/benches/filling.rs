//! Compares a hash with authfleet's default parameters by this crate, with yields, and by the crate `argon2`, without.
//! The two alternate, so that other work on the machine slows both equally.
//!
//!     cargo bench -p paced-argon2
use std::hint::black_box;
use std::time::{Duration, Instant};

use argon2::{Algorithm, Argon2, Params, Version};
use paced_argon2::{Block, Input};

const ROUNDS: usize = 100;

fn main() {
    let params = Params::new(19 * 1024, 2, 1, Some(32)).expect("valid parameters");
    let (algorithm, version) = (Algorithm::Argon2id, Version::V0x13);
    let (password, salt) = (b"correct horse battery staple", b"sixteen bytes or more");
    let input = Input { algorithm, version, params: &params, password, salt, secret: b"" };
    let theirs = Argon2::new(algorithm, version, params.clone());
    let mut our_memory = vec![Block::ZERO; params.block_count()];
    let mut their_memory = vec![argon2::Block::new(); params.block_count()];

    let (mut paced, mut at_once, mut stretches) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let (mut our_tag, mut their_tag) = ([0; 32], [0; 32]);
        let begun = Instant::now();
        let mut last = begun;
        input.hash(&mut our_tag, &mut our_memory, &mut || {
            stretches.push(last.elapsed());
            std::thread::yield_now();
            last = Instant::now();
        });
        let ours = begun.elapsed();

        let begun = Instant::now();
        theirs.hash_password_into_with_memory(password, salt, &mut their_tag, &mut their_memory).expect("a hash");
        let one_go = begun.elapsed();
        assert_eq!(black_box(our_tag), black_box(their_tag));

        // The first round touches the memory for the first time.
        if round == 0 {
            stretches.clear();
        } else {
            paced.push(ours);
            at_once.push(one_go);
        }
    }
    println!("{ROUNDS} hashes each: Argon2id, 19 MiB, 2 passes\n");
    println!("                                     fastest     median        p99");
    row("this crate, with yields and wipe", &mut paced);
    row("argon2, in one go, no wipe", &mut at_once);
    row("this crate, between two pauses", &mut stretches);
}

fn row(name: &str, times: &mut [Duration]) {
    times.sort();
    let at = |part: usize| format!("{:.3} ms", times[times.len() * part / 100].as_secs_f64() * 1e3);
    println!("{name:<34}{:>11}{:>11}{:>11}", at(0), at(50), at(99));
}
