//! The connections and bytes that the database uses at the moment.
use std::path::Path;

use super::SqliteUsers;
use super::connections::READERS;
use super::files::Paths;
use crate::store::users::{Connections, Usage};

impl SqliteUsers {
    /// Reads them without sending a statement.
    pub(in crate::store::users) fn usage(&self) -> Usage {
        let open = self.database.pools();
        let [writer, readers] = open.map_or([(0, 0); 2], |pools| {
            pools.map(|pool| {
                let (open, idle) = (pool.size() as usize, pool.num_idle());
                (idle, open.saturating_sub(idle))
            })
        });
        let pools = [("writer", 1, writer), ("readers", READERS as usize, readers)];
        let pools = pools.map(|(pool, limit, (idle, busy))| Connections { pool, limit, idle, busy });
        let path = self.database.path();
        let space = rustix::fs::statvfs(path).ok();
        Usage {
            pools: pools.to_vec(),
            // A file has no standby.
            is_primary: Some(true),
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
