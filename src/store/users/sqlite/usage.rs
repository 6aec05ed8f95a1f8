//! What the database takes at the moment.
use std::path::Path;

use super::SqliteUsers;
use super::files::Paths;
use crate::store::users::{Connections, Usage};

impl SqliteUsers {
    /// Looks, without a statement to the database.
    pub(in crate::store::users) fn usage(&self) -> Usage {
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
