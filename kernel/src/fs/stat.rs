//! What stat(2), statx(2) and statfs(2) report, and the numbers inside it.

use linux_raw_sys::general as abi;

use crate::process;

/// Seconds and nanoseconds since 1970, as file timestamps have them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    /// Whole seconds; negative before 1970.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanoseconds: u32,
}

/// A device number in its parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId {
    /// Which driver.
    pub major: u32,
    /// Which of the driver's devices.
    pub minor: u32,
}

impl DeviceId {
    /// The device with these numbers.
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }

    /// The encoding that `st_dev`, `st_rdev` and mknod(2) use: the low 8 bits of the minor number, 12 bits of
    /// major, then the rest of the minor.
    pub const fn encode(self) -> u64 {
        (self.minor as u64 & 0xff) | (self.major as u64 & 0xfff) << 8 | (self.minor as u64 & 0xf_ff00) << 12
    }

    /// The reverse of `encode`.
    pub const fn decode(raw: u64) -> Self {
        Self { major: (raw >> 8 & 0xfff) as u32, minor: (raw & 0xff | raw >> 12 & 0xf_ff00) as u32 }
    }
}

/// The type of a file, with the values of `S_IFMT` shifted down: also what `d_type` holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FileType {
    /// No file of the tree: what epoll, eventfd and the like report.
    Anonymous = 0,
    /// A pipe with or without a name.
    Fifo = 1,
    /// A character device.
    CharDevice = 2,
    /// A directory.
    Directory = 4,
    /// A block device.
    BlockDevice = 6,
    /// A regular file.
    Regular = 8,
    /// A symbolic link.
    Symlink = 10,
    /// A socket.
    Socket = 12,
}

impl FileType {
    /// The type bits of a mode, or `None` when they name no type.
    pub fn from_mode(mode: u32) -> Option<Self> {
        Some(match mode >> 12 & 0xf {
            0 => Self::Anonymous,
            1 => Self::Fifo,
            2 => Self::CharDevice,
            4 => Self::Directory,
            6 => Self::BlockDevice,
            8 => Self::Regular,
            10 => Self::Symlink,
            12 => Self::Socket,
            _ => return None,
        })
    }

    /// The `S_IFMT` bits of a mode.
    pub const fn mode_bits(self) -> u32 {
        (self as u32) << 12
    }
}

/// Everything that is known about one file.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stat {
    /// The file system that has the file.
    pub dev: DeviceId,
    /// The file's number in it.
    pub ino: u64,
    /// Names of the file.
    pub nlink: u32,
    /// Type and permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// For a device node: which device.
    pub rdev: DeviceId,
    /// Bytes.
    pub size: u64,
    /// Preferred size of a transfer, bytes.
    pub block_size: u32,
    /// Allocated units of 512 bytes.
    pub blocks: u64,
    /// Last read.
    pub atime: Timestamp,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last change of the content or the attributes.
    pub ctime: Timestamp,
    /// Creation.
    pub btime: Timestamp,
}

impl Stat {
    /// With the numbers that the current thread's user namespace has for owner and group.
    fn shown(mut self) -> Self {
        if let Some(thread) = process::try_current().filter(|thread| thread.has_user_namespace()) {
            let own = thread.credentials();
            (self.uid, self.gid) = (own.shown_uid(self.uid), own.shown_gid(self.gid));
        }
        self
    }

    /// In the layout of stat(2).
    pub fn to_abi(self) -> abi::stat {
        let this = self.shown();
        abi::stat {
            st_dev: self.dev.encode(),
            st_ino: self.ino,
            st_nlink: self.nlink.into(),
            st_mode: self.mode,
            st_uid: this.uid,
            st_gid: this.gid,
            __pad0: 0,
            st_rdev: self.rdev.encode(),
            st_size: self.size as i64,
            st_blksize: self.block_size.into(),
            st_blocks: self.blocks as i64,
            st_atime: self.atime.seconds as u64,
            st_atime_nsec: self.atime.nanoseconds.into(),
            st_mtime: self.mtime.seconds as u64,
            st_mtime_nsec: self.mtime.nanoseconds.into(),
            st_ctime: self.ctime.seconds as u64,
            st_ctime_nsec: self.ctime.nanoseconds.into(),
            __unused: [0; 3],
        }
    }

    /// In the layout of statx(2). `mount` is the identifier of the mount that the file was reached through
    /// and whether the file is that mount's root.
    pub fn to_statx(self, mount: Option<(u64, bool)>) -> abi::statx {
        let this = self.shown();
        // SAFETY: the structure consists of integers only, for which zero is a value.
        let mut out: abi::statx = unsafe { core::mem::zeroed() };
        let time =
            |t: Timestamp| abi::statx_timestamp { tv_sec: t.seconds, tv_nsec: t.nanoseconds, __reserved: 0 };
        out.stx_mask = abi::STATX_BASIC_STATS | abi::STATX_BTIME;
        out.stx_blksize = self.block_size;
        out.stx_nlink = self.nlink;
        out.stx_uid = this.uid;
        out.stx_gid = this.gid;
        out.stx_mode = self.mode as u16;
        out.stx_ino = self.ino;
        out.stx_size = self.size;
        out.stx_blocks = self.blocks;
        out.stx_atime = time(self.atime);
        out.stx_btime = time(self.btime);
        out.stx_ctime = time(self.ctime);
        out.stx_mtime = time(self.mtime);
        out.stx_rdev_major = self.rdev.major;
        out.stx_rdev_minor = self.rdev.minor;
        out.stx_dev_major = self.dev.major;
        out.stx_dev_minor = self.dev.minor;
        out.stx_attributes_mask = u64::from(abi::STATX_ATTR_MOUNT_ROOT);
        if let Some((id, is_root)) = mount {
            out.stx_mask |= abi::STATX_MNT_ID;
            out.stx_mnt_id = id;
            if is_root {
                out.stx_attributes |= u64::from(abi::STATX_ATTR_MOUNT_ROOT);
            }
        }
        out
    }
}

/// What statfs(2) reports about a file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct Statfs {
    /// The magic number of the type.
    pub magic: u64,
    /// Bytes of a block; for hugetlbfs the size of its huge pages.
    pub block_size: u64,
    /// Blocks in all; 0 where there is no limit.
    pub blocks: u64,
    /// Blocks that are free.
    pub blocks_free: u64,
    /// Blocks that are free for ordinary users.
    pub blocks_available: u64,
    /// Files that may exist.
    pub files: u64,
    /// Files that may still be created.
    pub files_free: u64,
    /// Longest name, bytes.
    pub name_max: u64,
}

impl Statfs {
    /// In the layout of statfs(2); `flags` are the `ST_*` flags of the mount, `dev` becomes the identifier.
    pub fn to_abi(self, dev: DeviceId, flags: u64) -> abi::statfs {
        let id = dev.encode();
        abi::statfs {
            f_type: self.magic as i64,
            f_bsize: self.block_size as i64,
            f_blocks: self.blocks as i64,
            f_bfree: self.blocks_free as i64,
            f_bavail: self.blocks_available as i64,
            f_files: self.files as i64,
            f_ffree: self.files_free as i64,
            f_fsid: abi::__kernel_fsid_t { val: [id as i32, (id >> 32) as i32] },
            f_namelen: self.name_max as i64,
            f_frsize: self.block_size as i64,
            f_flags: flags as i64,
            f_spare: [0; 4],
        }
    }
}
