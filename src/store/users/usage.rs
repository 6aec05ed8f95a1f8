//! What the users' database takes at the moment.
use std::path::Path;

use super::UserStore;
use super::files::Paths;

/// Connections and bytes. Bytes are absent where the file system doesn't tell.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Connections of the one writer.
    pub writer: Connections,
    /// Connections of the readers.
    pub readers: Connections,
    /// The database file.
    pub database: Option<u64>,
    /// Its write-ahead log.
    pub journal: Option<u64>,
    /// The file system that holds it.
    pub volume: Option<u64>,
    /// What this user may still write to it.
    pub volume_free: Option<u64>,
}

/// Open connections of a pool.
#[derive(Clone, Copy, Debug, Default)]
pub struct Connections {
    /// Waiting for work.
    pub idle: usize,
    /// At work.
    pub busy: usize,
}

impl UserStore {
    /// Looks, without a statement to the database.
    pub fn usage(&self) -> Usage {
        let pools = self.database.pools();
        let [writer, readers] = pools.map_or_else(Default::default, |pools| {
            pools.map(|pool| {
                let (open, idle) = (pool.size() as usize, pool.num_idle());
                Connections { idle, busy: open.saturating_sub(idle) }
            })
        });
        let path = self.database.path();
        let space = rustix::fs::statvfs(path).ok();
        Usage {
            writer,
            readers,
            database: size_of(path),
            journal: Paths::resolve(path).ok().and_then(|paths| size_of(&paths.wal)),
            volume: space.as_ref().map(|space| space.f_blocks.saturating_mul(space.f_frsize)),
            volume_free: space.map(|space| space.f_bavail.saturating_mul(space.f_frsize)),
        }
    }
}

fn size_of(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().map(|metadata| metadata.len())
}
