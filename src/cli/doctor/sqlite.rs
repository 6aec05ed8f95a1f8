//! Checks of a SQLite database of users and of its file system.
use std::time::Duration;

use super::{Check, fail, names, ok, warn};
use crate::store::users::sqlite::{OpenError, Survey};

const MIB: u64 = 1 << 20;
/// A commit that takes longer holds up registrations.
const SLOW_COMMIT: Duration = Duration::from_millis(100);

pub(super) fn checks(survey: &Survey) -> Vec<Check> {
    vec![
        file(survey),
        owner(survey),
        filesystem(survey),
        space(survey),
        version(survey),
        journal(survey),
        schema(survey),
        names::names(&survey.unusual),
        writable(survey),
    ]
}

/// What to do about an error whose message doesn't say it.
pub(super) fn advice(error: &OpenError) -> &'static str {
    match error {
        OpenError::Missing { .. } => "DATABASE_URL must name the file that all replicas share",
        OpenError::NetworkFilesystem { .. } => "DATABASE_URL must name a file on a local volume of this host",
        OpenError::NotWritable { .. } | OpenError::SideFile { .. } => {
            "the directory and all files in it must belong to the user that the server runs as"
        }
        _ => "the server would not start with this database",
    }
}

fn file(survey: &Survey) -> Check {
    let found = format!("{}, {} KiB, mode {:03o}", survey.path.display(), survey.bytes.div_ceil(1024), survey.mode);
    let is_private = survey.mode.trailing_zeros() >= 3;
    if is_private {
        ok("database.file", found)
    } else {
        warn(
            "database.file",
            format!("{found}: everybody on this host may read it"),
            "it holds password hashes: chmod o= FILE",
        )
    }
}

fn owner(survey: &Survey) -> Check {
    const NAME: &str = "database.owner";
    let foreign = &survey.out_of_owners_reach;
    if foreign.is_empty() {
        return ok(NAME, "the files beside it are accessible to the database's owner");
    }
    let found: Vec<_> =
        foreign.iter().map(|(path, uid)| format!("{} belongs to user id {uid}", path.display())).collect();
    fail(
        NAME,
        found.join(", "),
        "the database's owner can't use it, so the server would not start: as root, run \
         `chown --reference=DATABASE FILE`",
    )
}

fn filesystem(survey: &Survey) -> Check {
    const NAME: &str = "database.filesystem";
    match survey.filesystem {
        Some(kind @ "tmpfs") => warn(NAME, format!("{kind}: all users are gone after a reboot"), "use a disk"),
        Some(kind @ "overlayfs") => {
            warn(NAME, format!("{kind}: all users are gone with the container"), "mount a volume")
        }
        Some(kind) => ok(NAME, format!("{kind}, local")),
        None => ok(NAME, "not a network file system"),
    }
}

fn space(survey: &Survey) -> Check {
    const NAME: &str = "database.space";
    let found = format!("{} MiB free", survey.free_bytes / MIB);
    match survey.free_bytes / MIB {
        0..64 => fail(NAME, found, "registrations and password changes fail on a full disk: make room"),
        64..1024 => warn(NAME, found, "make room before the disk is full"),
        _ => ok(NAME, found),
    }
}

fn version(survey: &Survey) -> Check {
    const NAME: &str = "database.sqlite";
    if survey.is_recent {
        ok(NAME, format!("SQLite {}", survey.version))
    } else {
        let found = format!("SQLite {}", survey.version);
        fail(NAME, found, "3.51.3 or newer is needed: older ones can corrupt a database that processes share")
    }
}

fn journal(survey: &Survey) -> Check {
    const NAME: &str = "database.journal";
    match survey.journal_mode.as_str() {
        "wal" => ok(NAME, "wal, synchronous=FULL"),
        mode => fail(NAME, format!("{mode}, not wal"), "run `authfleet migrate`"),
    }
}

fn schema(survey: &Survey) -> Check {
    const NAME: &str = "database.schema";
    match &survey.schema {
        Ok(version) => ok(NAME, format!("migration {version}")),
        Err(error) => fail(NAME, error.to_string(), "the server would not start with this schema"),
    }
}

fn writable(survey: &Survey) -> Check {
    const NAME: &str = "database.write";
    match &survey.commit {
        Ok(time) if *time <= SLOW_COMMIT => ok(NAME, format!("a commit took {:.1} ms", time.as_secs_f64() * 1e3)),
        Ok(time) => {
            let found = format!("a commit took {:.0} ms", time.as_secs_f64() * 1e3);
            warn(NAME, found, "the disk is slow or busy, or another process holds the lock for a long time")
        }
        Err(error) => {
            fail(NAME, error.to_string(), "no registration can succeed: look for a full or read-only disk, or a lock")
        }
    }
}
