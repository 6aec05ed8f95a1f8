//! Stored hashes: what is written, what is accepted, and the computing itself.
use std::io;
use std::ops::RangeInclusive;

use argon2::password_hash::phc::{Output, ParamsString, PasswordHash, Salt};
use argon2::{Algorithm, Params, Version};
use memmap2::MmapMut;
use paced_argon2::{Block, Input};
use secrecy::{ExposeSecret as _, SecretString};
use subtle::ConstantTimeEq as _;
use zerocopy::FromBytes as _;

use super::normalize;
use crate::config::HashingConfig;

/// The most memory that a stored Argon2 hash may ask for, in KiB, unless the configuration itself uses more.
pub(super) const MAX_MEMORY_KIB: u32 = 256 * 1024;
/// The most passes that a stored Argon2 hash may ask for, unless the configuration itself uses more.
pub(super) const MAX_ITERATIONS: u32 = 16;
/// The most lanes that a stored Argon2 hash may have, unless the configuration itself uses more.
pub(super) const MAX_PARALLELISM: u32 = 16;
/// Bytes of a stored Argon2 hash's output.
pub(super) const OUTPUT_LENGTHS: RangeInclusive<usize> = 16..=64;
/// The highest cost that a stored bcrypt hash may have: about a second.
pub(super) const MAX_BCRYPT_COST: u32 = 14;

/// bcrypt sees this many bytes; a shorter password is hashed with the NUL that ends it.
const BCRYPT_KEY_LENGTH: usize = 72;
/// RFC 9106 §3.1: 16 bytes are recommended for password hashing.
const SALT_LENGTH: usize = 16;
/// RFC 9106 §4: a 256-bit tag.
const OUTPUT_LENGTH: usize = 32;

/// Why a stored hash can't be used. Has no part of a hash or a password in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum StoredError {
    #[error("not an argon2 hash in the PHC string format, nor a $2a$, $2b$ or $2y$ bcrypt hash")]
    Malformed,
    #[error("its {parameter} is {value}, the limit is {limit}")]
    OutOfBounds { parameter: &'static str, value: usize, limit: usize },
}

/// Why a hash couldn't be computed although its parameters are fine.
#[derive(Debug, thiserror::Error)]
pub(super) enum ComputeError {
    #[error("no memory for Argon2's blocks")]
    Memory(#[from] io::Error),
    #[error("the operating system gave no randomness")]
    Random(#[from] getrandom::Error),
}

/// Argon2's working memory. It's kept for the next hash. Mapped by itself, so that it goes back to the system at once
/// when it is dropped: an allocator keeps it for its next customer, mimalloc for more than 20 s in an idle server.
#[derive(Default)]
pub(super) struct Blocks(Option<MmapMut>);

impl Blocks {
    fn of(&mut self, count: usize) -> io::Result<&mut [Block]> {
        let bytes = count * size_of::<Block>();
        let map = match self.0.take().filter(|map| map.len() >= bytes) {
            Some(map) => map,
            None => MmapMut::map_anon(bytes)?,
        };
        let map = self.0.insert(map);
        Ok(<[Block]>::mut_from_bytes(&mut map[..bytes]).expect("pages are aligned, and hold whole blocks"))
    }
}

/// A stored hash whose parameters are within bounds.
pub(super) enum Stored<'a> {
    Argon2 { algorithm: Algorithm, version: Version, params: Params, salt: Salt, output: Output },
    Bcrypt(&'a str),
}

/// What new hashes look like: Argon2id, version 0x13, the configured parameters.
#[derive(Clone, Debug)]
pub(super) struct Scheme {
    params: Params,
    /// Every computation, so that tests can compare the work.
    #[cfg(test)]
    pub(super) computed: std::sync::Arc<parking_lot::Mutex<Vec<String>>>,
}

impl Scheme {
    pub(super) fn new(config: &HashingConfig) -> argon2::Result<Self> {
        let params = Params::new(config.memory_kib, config.iterations, config.parallelism, Some(OUTPUT_LENGTH))?;
        Ok(Self {
            params,
            #[cfg(test)]
            computed: std::sync::Arc::default(),
        })
    }

    /// How many blocks of one KiB a hash writes in all passes, which is a measure of its time.
    pub(super) fn block_writes(&self) -> u64 {
        u64::from(self.params.m_cost()) * u64::from(self.params.t_cost())
    }

    /// A new hash of `password`, in the PHC string format.
    pub(super) fn hash(&self, password: &SecretString, blocks: &mut Blocks) -> Result<SecretString, ComputeError> {
        let mut salt = [0; SALT_LENGTH];
        getrandom::fill(&mut salt)?;
        let output = self.compute(password, &salt, blocks)?;
        let hash = PasswordHash {
            algorithm: Algorithm::Argon2id.ident(),
            version: Some(Version::V0x13.into()),
            params: ParamsString::try_from(&self.params).expect("three decimals fit into a parameter string"),
            salt: Some(Salt::new(&salt).expect("16 bytes are a valid salt")),
            hash: Some(Output::new(&output).expect("32 bytes are a valid output")),
        };
        Ok(hash.to_string().into())
    }

    /// Does the work of one hash where there is no user or no usable hash to compare with.
    pub(super) fn burn(&self, password: &SecretString, blocks: &mut Blocks) -> Result<(), ComputeError> {
        self.compute(password, &[0; SALT_LENGTH], blocks).map(drop)
    }

    fn compute(
        &self,
        password: &SecretString,
        salt: &[u8],
        blocks: &mut Blocks,
    ) -> Result<[u8; OUTPUT_LENGTH], ComputeError> {
        let mut output = [0; OUTPUT_LENGTH];
        self.run((Algorithm::Argon2id, Version::V0x13, &self.params), password, salt, &mut output, blocks)?;
        Ok(output)
    }

    #[cfg_attr(not(test), expect(clippy::unused_self, reason = "tests count the computations of one gate"))]
    fn run(
        &self,
        (algorithm, version, params): (Algorithm, Version, &Params),
        password: &SecretString,
        salt: &[u8],
        output: &mut [u8],
        blocks: &mut Blocks,
    ) -> Result<(), ComputeError> {
        #[cfg(test)]
        self.computed.lock().push(ParamsString::try_from(params).unwrap().to_string());
        let password = normalize(password.expose_secret());
        let password = password.expose_secret().as_bytes();
        let input = Input { algorithm, version, params, password, salt, secret: b"" };
        input.hash(output, blocks.of(params.block_count())?, &mut std::thread::yield_now);
        Ok(())
    }

    /// Reads a stored hash and refuses parameters that would cost too much, before anything is allocated for them.
    pub(super) fn parse<'a>(&self, text: &'a str) -> Result<Stored<'a>, StoredError> {
        if text.starts_with("$2") {
            return parse_bcrypt(text);
        }
        let hash = PasswordHash::new(text).map_err(|_| StoredError::Malformed)?;
        let algorithm = Algorithm::try_from(hash.algorithm.as_str()).map_err(|_| StoredError::Malformed)?;
        // The reference implementation writes no version if it is 0x10.
        let version = Version::try_from(hash.version.unwrap_or(0x10)).map_err(|_| StoredError::Malformed)?;
        let params = Params::try_from(&hash).map_err(|_| StoredError::Malformed)?;
        let (Some(salt), Some(output)) = (hash.salt, hash.hash) else { return Err(StoredError::Malformed) };
        let at_most = |parameter, value: u32, limit: u32, configured: u32| {
            let (value, limit) = (value as usize, limit.max(configured) as usize);
            if value <= limit { Ok(()) } else { Err(StoredError::OutOfBounds { parameter, value, limit }) }
        };
        at_most("memory in KiB", params.m_cost(), MAX_MEMORY_KIB, self.params.m_cost())?;
        at_most("number of iterations", params.t_cost(), MAX_ITERATIONS, self.params.t_cost())?;
        at_most("parallelism", params.p_cost(), MAX_PARALLELISM, self.params.p_cost())?;
        if !OUTPUT_LENGTHS.contains(&output.len()) {
            let limit = if output.len() < 16 { *OUTPUT_LENGTHS.start() } else { *OUTPUT_LENGTHS.end() };
            return Err(StoredError::OutOfBounds { parameter: "output length", value: output.len(), limit });
        }
        if salt.len() < argon2::MIN_SALT_LEN {
            return Err(StoredError::Malformed);
        }
        Ok(Stored::Argon2 { algorithm, version, params, salt, output })
    }

    /// Whether `stored` was made from `password`: one computation, compared in constant time.
    pub(super) fn matches(
        &self,
        stored: &Stored<'_>,
        password: &SecretString,
        blocks: &mut Blocks,
    ) -> Result<bool, ComputeError> {
        match stored {
            Stored::Argon2 { algorithm, version, params, salt, output } => {
                let mut computed = [0; Output::MAX_LENGTH];
                let computed = &mut computed[..output.len()];
                // A hash that needs more memory than ours gets its own, which is freed at once.
                let own = params.block_count() > self.params.block_count();
                let blocks = if own { &mut Blocks::default() } else { blocks };
                self.run((*algorithm, *version, params), password, salt, computed, blocks)?;
                Ok(computed.ct_eq(output.as_bytes()).into())
            }
            Stored::Bcrypt(text) => {
                #[cfg(test)]
                self.computed.lock().push("bcrypt".to_owned());
                Ok(bcrypt::verify(password.expose_secret(), text).expect("a hash that was parsed"))
            }
        }
    }

    /// Whether a matching password should be hashed anew. That is so for everything but Argon2id with the configured
    /// parameters, except bcrypt hashes of passwords of 72 bytes or more: bcrypt ignores the rest, so a typing error in
    /// the rest would become part of the password. Such a user keeps the old hash until choosing a new password.
    pub(super) fn outdates(&self, stored: &Stored<'_>, password: &SecretString) -> bool {
        match stored {
            Stored::Argon2 { algorithm, version, params, salt, .. } => {
                let current = *algorithm == Algorithm::Argon2id && *version == Version::V0x13 && *params == self.params;
                !current || salt.len() < SALT_LENGTH
            }
            Stored::Bcrypt(_) => password.expose_secret().len() < BCRYPT_KEY_LENGTH,
        }
    }
}

fn parse_bcrypt(text: &str) -> Result<Stored<'_>, StoredError> {
    // `$2x$` marks hashes of a faulty implementation, which others don't reproduce.
    if text.starts_with("$2x$") {
        return Err(StoredError::Malformed);
    }
    let parts: bcrypt::HashParts = text.parse().map_err(|_| StoredError::Malformed)?;
    match parts.get_cost() {
        0..4 => Err(StoredError::Malformed),
        4..=MAX_BCRYPT_COST => Ok(Stored::Bcrypt(text)),
        cost => Err(StoredError::OutOfBounds {
            parameter: "bcrypt cost",
            value: cost as usize,
            limit: MAX_BCRYPT_COST as usize,
        }),
    }
}
