//! The files of a SQLite database: the file system that they are on, and whether they are still the ones that were
//! opened.
//!
//! Never open the database or its `-shm` here: closing any descriptor of a file drops all POSIX locks that the process
//! holds on it (<https://www.sqlite.org/howtocorrupt.html> §2.2). Everything below asks by path.
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Access, FlockOperation, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::OpenError;

const LOCK_POLL: Duration = Duration::from_millis(20);

/// Identifies the file that a path leads to. Comparable only while somebody holds the file open, because numbers are
/// reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileId {
    dev: u64,
    ino: u64,
}

impl FileId {
    /// The file at `path`. `None` if there is none.
    pub(super) fn at(path: &Path) -> io::Result<Option<Self>> {
        match std::fs::metadata(path) {
            Ok(metadata) => Ok(Some(Self { dev: metadata.dev(), ino: metadata.ino() })),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The paths of a database's three files.
#[derive(Clone, Debug)]
pub(super) struct Paths {
    /// The configured path. Symbolic links are followed each time.
    pub(super) db: PathBuf,
    /// The journal, beside the file that `db` leads to.
    pub(super) wal: PathBuf,
    /// The journal's index, beside the file that `db` leads to.
    pub(super) shm: PathBuf,
}

impl Paths {
    pub(super) fn resolve(db: &Path) -> Result<Self, OpenError> {
        let real = db.canonicalize().map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => OpenError::Missing { path: db.into() },
            _ => OpenError::Io { path: db.into(), source },
        })?;
        Ok(Self { db: db.into(), wal: with_suffix(&real, "-wal"), shm: with_suffix(&real, "-shm") })
    }
}

pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// The files that connections were opened on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Files {
    pub(super) db: FileId,
    pub(super) wal: FileId,
    pub(super) shm: FileId,
}

/// What has happened to the files since they were opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// All three are in place.
    Same,
    /// There is no file at the database's path. It was deleted, or moved away and may come back.
    Missing,
    /// There is another database at the path.
    Replaced,
    /// The database is the same, but its `-wal` or `-shm` isn't.
    JournalLost {
        /// No new ones exist yet.
        absent: bool,
    },
}

impl Files {
    /// The files at the paths. `None` while one of the three doesn't exist.
    pub(super) fn at(paths: &Paths) -> io::Result<Option<Self>> {
        let ids = (FileId::at(&paths.db)?, FileId::at(&paths.wal)?, FileId::at(&paths.shm)?);
        Ok(if let (Some(db), Some(wal), Some(shm)) = ids { Some(Self { db, wal, shm }) } else { None })
    }

    /// Finds out by three `stat` calls, because SQLite itself keeps writing to deleted files.
    pub(super) fn fate(&self, paths: &Paths) -> io::Result<Fate> {
        let Some(db) = FileId::at(&paths.db)? else { return Ok(Fate::Missing) };
        let (wal, shm) = (FileId::at(&paths.wal)?, FileId::at(&paths.shm)?);
        Ok(if db != self.db {
            Fate::Replaced
        } else if (wal, shm) == (Some(self.wal), Some(self.shm)) {
            Fate::Same
        } else {
            let ours_or_none = |id: Option<FileId>, own| id.is_none_or(|id| id == own);
            Fate::JournalLost { absent: ours_or_none(wal, self.wal) && ours_or_none(shm, self.shm) }
        })
    }
}

/// Takes the lock under which a process creates, migrates or removes files of the database at `path`. It is released
/// when dropped, and by the kernel when the process dies. The lock's file stays, because if it were removed, two
/// processes could hold the lock.
pub(super) async fn lock(path: &Path, patience: Duration) -> Result<File, OpenError> {
    let real = path.canonicalize().unwrap_or_else(|_| path.into());
    let path = with_suffix(&real, ".lock");
    let failed = |source| OpenError::Io { path: path.clone(), source };
    let file = match open_lock(&real, &path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            check_side_file(&real, &path)?;
            return Err(failed(error));
        }
        opened => opened.map_err(failed)?,
    };
    let wait = async {
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(()),
                Err(Errno::WOULDBLOCK | Errno::INTR) => tokio::time::sleep(LOCK_POLL).await,
                Err(errno) => return Err(failed(errno.into())),
            }
        }
    };
    match tokio::time::timeout(patience, wait).await {
        Ok(locked) => locked.map(|()| file),
        Err(_) => Err(OpenError::Locked { path }),
    }
}

/// Opens the lock's file, and creates it if there is none. Everybody who can use the database can use it, whoever
/// creates it.
fn open_lock(database: &Path, path: &Path) -> io::Result<File> {
    // Never follows a symbolic link, because the directory's owner must not be able to lead root to another file.
    let no_link = OFlags::NOFOLLOW.bits().cast_signed();
    let existing = || OpenOptions::new().write(true).custom_flags(no_link).open(path);
    match existing() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Ok(file) => {
            // An older release that ran as root left it behind. It is an empty file that nothing else refers to.
            let metadata = file.metadata()?;
            if metadata.uid() == 0 && metadata.is_file() && metadata.nlink() == 1 && metadata.len() == 0 {
                Owner::beside(database).give(&file);
            }
            return Ok(file);
        }
        error => return error,
    }
    match OpenOptions::new().create_new(true).write(true).mode(0o600).open(path) {
        Ok(file) => {
            Owner::beside(database).give(&file);
            Ok(file)
        }
        // Another process has just created it.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => existing(),
        error => error,
    }
}

/// The owner and mode of a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owner {
    uid: u32,
    gid: u32,
    mode: u32,
}

impl Owner {
    /// The database's owner and mode. If the database doesn't exist yet, it will belong to its directory's owner, and
    /// nobody else may read it (password hashes).
    pub(super) fn beside(database: &Path) -> Self {
        match (std::fs::metadata(database), std::fs::metadata(directory_of(database))) {
            (Ok(database), _) => Self { uid: database.uid(), gid: database.gid(), mode: database.mode() & 0o666 },
            (Err(_), Ok(directory)) => Self { uid: directory.uid(), gid: directory.gid(), mode: 0o600 },
            (Err(_), Err(_)) => {
                Self { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw(), mode: 0o600 }
            }
        }
    }

    /// Gives a file this owner and mode, as SQLite does with `-wal` and `-shm`. Only root may give files away. If that
    /// fails, the file stays as it is, and `doctor` reports it.
    pub(super) fn give(self, file: &File) {
        if rustix::process::geteuid().is_root() {
            let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
            rustix::fs::fchown(file, Some(uid), Some(gid)).ok();
        }
        rustix::fs::fchmod(file, Mode::from_raw_mode(self.mode)).ok();
    }
}

/// The files beside a database: those of SQLite, and the lock.
pub(super) fn side_files(real: &Path) -> impl Iterator<Item = PathBuf> {
    ["-wal", "-shm", ".lock"].into_iter().map(|suffix| with_suffix(real, suffix))
}

/// The files beside a database that its owner can't use, each with its own owner's number.
pub(super) fn out_of_owners_reach(real: &Path) -> io::Result<Vec<(PathBuf, u32)>> {
    let database = std::fs::metadata(real)?;
    let side_files = side_files(real).filter_map(|path| Some((std::fs::metadata(&path).ok()?, path)));
    let is_usable = |file: &std::fs::Metadata| {
        let by_group = file.gid() == database.gid() && file.mode() & 0o060 == 0o060;
        file.uid() == database.uid() || by_group || file.mode() & 0o006 == 0o006
    };
    Ok(side_files.filter(|(file, _)| !is_usable(file)).map(|(file, path)| (path, file.uid())).collect())
}

/// Refuses a file beside the database that this user can't use. SQLite would only say "unable to open".
fn check_side_file(real: &Path, path: &Path) -> Result<(), OpenError> {
    let Ok(metadata) = std::fs::metadata(path) else { return Ok(()) };
    rustix::fs::access(path, Access::READ_OK | Access::WRITE_OK).map_err(|_| OpenError::SideFile {
        database: real.into(),
        path: path.into(),
        owner: metadata.uid(),
        uid: rustix::process::getuid().as_raw(),
    })
}

/// Refuses a directory in which processes can't share a WAL database, or to which this user can't write.
pub(super) fn check_directory(path: &Path) -> Result<(), OpenError> {
    let directory = directory_of(path);
    check_filesystem(directory)?;
    check_access(directory, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK)
}

/// Does [`check_directory`] for an existing database. Also checks the file itself, which may be a symbolic link or a
/// mount of its own, and the files beside it.
pub(super) fn check_place(path: &Path) -> Result<(), OpenError> {
    let real = path.canonicalize().map_err(|source| OpenError::Io { path: path.into(), source })?;
    check_directory(&real)?;
    check_filesystem(&real)?;
    check_access(&real, Access::READ_OK | Access::WRITE_OK)?;
    side_files(&real).try_for_each(|path| check_side_file(&real, &path))
}

/// The directory of `path`. The working directory for a bare name.
pub(super) fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn check_access(path: &Path, access: Access) -> Result<(), OpenError> {
    rustix::fs::access(path, access).map_err(|errno| OpenError::NotWritable {
        path: path.into(),
        uid: rustix::process::getuid().as_raw(),
        source: errno.into(),
    })
}

#[cfg(target_os = "linux")]
fn check_filesystem(path: &Path) -> Result<(), OpenError> {
    let stat = rustix::fs::statfs(path).map_err(|errno| OpenError::Io { path: path.into(), source: errno.into() })?;
    // The field's width and sign differ between architectures, but every magic number has 32 bits.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "magic numbers have 32 bits")]
    match shared_filesystem(stat.f_type as u32) {
        None => Ok(()),
        Some(kind) => Err(OpenError::NetworkFilesystem { path: path.into(), kind }),
    }
}

/// On other systems, authfleet runs only for development.
#[cfg(not(target_os = "linux"))]
fn check_filesystem(_path: &Path) -> Result<(), OpenError> {
    Ok(())
}

/// The name of a filesystem to which other hosts can write. Neither locks nor shared memory reach them
/// (<https://www.sqlite.org/wal.html> §1). The numbers are from `linux/magic.h` and statfs(2).
///
/// FUSE is refused as a whole. The number doesn't tell sshfs, s3fs and `GlusterFS` from a local one, and file servers
/// of desktop virtual machines (virtiofs, 9p) let the host open the database behind the kernel's locks.
#[cfg(target_os = "linux")]
fn shared_filesystem(magic: u32) -> Option<&'static str> {
    Some(match magic {
        0x0000_6969 => "NFS",
        0x0000_517B => "SMB",
        0xFF53_4D42 => "CIFS",
        0xFE53_4D42 => "SMB2",
        0x0102_1997 => "9p",
        0x5346_414F | 0x6B41_4653 => "AFS",
        0x7375_7245 => "Coda",
        0x00C3_6400 => "Ceph",
        0x0000_564C => "NCP",
        0x0BD0_0BD0 => "Lustre",
        0x4750_4653 => "GPFS",
        0x0116_1970 => "GFS2",
        0x7461_636F => "OCFS2",
        0x786F_4256 => "vboxsf",
        0xBACB_ACBC => "VMware HGFS",
        0x6573_5546 => "FUSE",
        _ => return None,
    })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::shared_filesystem;

    #[test]
    fn filesystems_of_other_hosts_are_named_and_local_ones_pass() {
        assert_eq!(shared_filesystem(0x6969), Some("NFS"));
        assert_eq!(shared_filesystem(0xFF53_4D42), Some("CIFS"));
        assert_eq!(shared_filesystem(0x6573_5546), Some("FUSE"));
        // ext4, xfs, btrfs, tmpfs, overlayfs
        for local in [0xEF53, 0x5846_5342, 0x9123_683E, 0x0102_1994, 0x794C_7630] {
            assert_eq!(shared_filesystem(local), None, "{local:#x}");
        }
    }
}
