//! A mount of hugetlbfs: options, quota, inodes.

use core::fmt;

use crate::addr::PageSize;
use crate::error::{Error, Result};
use crate::hugetlb::Hugetlb;
use crate::machine::Machine;
use crate::pool::Subpool;
use crate::sync::{Arc, Spin};

/// `f_type` of statfs(2).
pub const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

/// A limit in the mount options.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Limit {
    /// So many bytes, rounded down to huge pages.
    Bytes(u64),
    /// So many percent of the pool's persistent size at the time of the mount.
    Percent(u64),
}

/// The options of a mount.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MountOptions {
    /// `pagesize=`; the default size if not given.
    pub page_size: Option<PageSize>,
    /// `size=`.
    pub size: Option<Limit>,
    /// `min_size=`.
    pub min_size: Option<Limit>,
    /// `nr_inodes=`.
    pub inodes: Option<u64>,
    /// `mode=`, for the host: permissions of the root directory.
    pub mode: Option<u32>,
    /// `uid=`, for the host.
    pub uid: Option<u32>,
    /// `gid=`, for the host.
    pub gid: Option<u32>,
}

impl MountOptions {
    /// Parses the options of mount(2), comma separated.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for an option that hugetlbfs does not know, or a bad value.
    pub fn parse(options: &str) -> Result<MountOptions> {
        let mut parsed = MountOptions::default();
        for option in options.split(',').filter(|option| !option.is_empty()) {
            let (key, value) = option.split_once('=').ok_or(Error::Invalid)?;
            match key {
                "pagesize" => {
                    let size = PageSize::from_bytes(parse_bytes(value)?).ok_or(Error::Invalid)?;
                    parsed.page_size = Some(size);
                }
                "size" => parsed.size = Some(parse_limit(value)?),
                "min_size" => parsed.min_size = Some(parse_limit(value)?),
                "nr_inodes" => parsed.inodes = Some(parse_bytes(value)?),
                "mode" => {
                    parsed.mode = Some(u32::from_str_radix(value, 8).map_err(|_| Error::Invalid)? & 0o1777);
                }
                "uid" => parsed.uid = Some(value.parse().map_err(|_| Error::Invalid)?),
                "gid" => parsed.gid = Some(value.parse().map_err(|_| Error::Invalid)?),
                _ => return Err(Error::Invalid),
            }
        }
        Ok(parsed)
    }
}

fn parse_limit(value: &str) -> Result<Limit> {
    match value.strip_suffix('%') {
        Some(percent) => Ok(Limit::Percent(percent.parse().map_err(|_| Error::Invalid)?)),
        None => parse_bytes(value).map(Limit::Bytes),
    }
}

/// A number with an optional suffix K, M, G, T, as Linux's memparse; hexadecimal with `0x`.
fn parse_bytes(value: &str) -> Result<u64> {
    let (digits, shift) = match value.as_bytes().last() {
        Some(b'k' | b'K') => (&value[..value.len() - 1], 10),
        Some(b'm' | b'M') => (&value[..value.len() - 1], 20),
        Some(b'g' | b'G') => (&value[..value.len() - 1], 30),
        Some(b't' | b'T') => (&value[..value.len() - 1], 40),
        _ => (value, 0),
    };
    let number = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hexadecimal) => u64::from_str_radix(hexadecimal, 16),
        None => digits.parse::<u64>(),
    };
    number.ok().and_then(|number| number.checked_mul(1 << shift)).ok_or(Error::Invalid)
}

/// What statfs(2) tells of a mount; block counts are in huge pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MountStatistics {
    /// `f_bsize`: the page size in bytes.
    pub block_size: u64,
    /// `f_blocks`: the maximum of `size=`; 0 without one, as on Linux.
    pub blocks: u64,
    /// `f_bfree`, `f_bavail`.
    pub free_blocks: u64,
    /// `f_files`: the maximum of `nr_inodes=`; 0 without one.
    pub inodes: u64,
    /// `f_ffree`.
    pub free_inodes: u64,
}

struct Inodes {
    maximum: u64,
    free: u64,
}

/// A mount of hugetlbfs. Names and directories are the host's.
pub struct Superblock<M: Machine> {
    hugetlb: Arc<Hugetlb<M>>,
    page_size: PageSize,
    subpool: Option<Arc<Subpool<M>>>,
    inodes: Option<Spin<M, Inodes>>,
    options: MountOptions,
}

impl<M: Machine> fmt::Debug for Superblock<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Superblock")
            .field("options", &self.options)
            .field("page_size", &self.page_size)
            .finish_non_exhaustive()
    }
}

impl<M: Machine> Superblock<M> {
    /// A mount with these options; its minimum is promised from now on.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] when the minimum exceeds the maximum, [`Error::NoMemory`] when the pool cannot promise it.
    pub fn new(hugetlb: &Arc<Hugetlb<M>>, options: MountOptions) -> Result<Arc<Superblock<M>>> {
        let page_size = options.page_size.unwrap_or(hugetlb.default_size());
        let pool = hugetlb.pool(page_size);
        let persistent = pool.statistics().persistent;
        let pages = |limit: Limit| match limit {
            Limit::Bytes(bytes) => bytes >> page_size.shift(),
            Limit::Percent(percent) => (u128::from(percent) * u128::from(persistent) / 100) as u64,
        };
        let (maximum, minimum) = (options.size.map(pages), options.min_size.map_or(0, pages));
        if maximum.is_some_and(|maximum| minimum > maximum) {
            return Err(Error::Invalid);
        }
        let subpool = match (maximum, minimum) {
            (None, 0) => None,
            _ => Some(Arc::new(Subpool::new(pool.clone(), maximum, minimum)?)),
        };
        Ok(Arc::new(Superblock {
            hugetlb: hugetlb.clone(),
            page_size,
            subpool,
            inodes: options.inodes.map(|maximum| Spin::<M, _>::new(Inodes { maximum, free: maximum })),
            options,
        }))
    }

    /// The size of the mount's pages.
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// The options it was mounted with.
    pub fn options(&self) -> &MountOptions {
        &self.options
    }

    /// Counts an inode that is no file (a directory, a symbolic link) until the result is dropped.
    ///
    /// # Errors
    ///
    /// [`Error::NoSpace`] when `nr_inodes=` is used up.
    pub fn charge_inode(self: &Arc<Self>) -> Result<InodeCharge<M>> {
        self.count_inode()?;
        Ok(InodeCharge { superblock: self.clone() })
    }

    /// As [`Superblock::charge_inode`], for a host that counts its inodes itself: this one is counted until
    /// [`Superblock::uncount_inode`].
    ///
    /// # Errors
    ///
    /// [`Error::NoSpace`] when `nr_inodes=` is used up.
    pub fn count_inode(&self) -> Result<()> {
        if let Some(inodes) = &self.inodes {
            let mut inodes = inodes.lock();
            inodes.free = inodes.free.checked_sub(1).ok_or(Error::NoSpace)?;
        }
        Ok(())
    }

    /// Counts out an inode that [`Superblock::count_inode`] has counted.
    pub fn uncount_inode(&self) {
        if let Some(inodes) = &self.inodes {
            let mut inodes = inodes.lock();
            debug_assert!(inodes.free < inodes.maximum, "an inode was counted out twice");
            inodes.free += 1;
        }
    }

    /// The quota, if the mount has limits.
    pub(crate) fn subpool(&self) -> Option<&Arc<Subpool<M>>> {
        self.subpool.as_ref()
    }

    /// The subsystem of the mount.
    pub(crate) fn hugetlb(&self) -> &Arc<Hugetlb<M>> {
        &self.hugetlb
    }

    /// What statfs(2) tells.
    pub fn statistics(&self) -> MountStatistics {
        let blocks = self.subpool.as_ref().and_then(|subpool| Some((subpool.maximum()?, subpool.used())));
        let inodes = self.inodes.as_ref().map(|inodes| {
            let inodes = inodes.lock();
            (inodes.maximum, inodes.free)
        });
        MountStatistics {
            block_size: self.page_size.bytes(),
            blocks: blocks.map_or(0, |(maximum, _)| maximum),
            free_blocks: blocks.map_or(0, |(maximum, used)| maximum - used),
            inodes: inodes.map_or(0, |(maximum, _)| maximum),
            free_inodes: inodes.map_or(0, |(_, free)| free),
        }
    }
}

/// The options as `/proc/mounts` shows them, each with a comma in front.
impl<M: Machine> fmt::Display for Superblock<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(uid) = self.options.uid.filter(|uid| *uid != 0) {
            write!(f, ",uid={uid}")?;
        }
        if let Some(gid) = self.options.gid.filter(|gid| *gid != 0) {
            write!(f, ",gid={gid}")?;
        }
        if let Some(mode) = self.options.mode.filter(|mode| *mode != 0o755) {
            write!(f, ",mode={mode:o}")?;
        }
        if let Some(inodes) = self.options.inodes {
            write!(f, ",nr_inodes={inodes}")?;
        }
        match self.page_size {
            PageSize::Size2M => f.write_str(",pagesize=2M")?,
            PageSize::Size1G => f.write_str(",pagesize=1024M")?,
        }
        for (name, limit) in [("size", self.options.size), ("min_size", self.options.min_size)] {
            match limit {
                Some(Limit::Bytes(bytes)) => {
                    write!(f, ",{name}={}", bytes & !(self.page_size.bytes() - 1))?;
                }
                Some(Limit::Percent(percent)) => write!(f, ",{name}={percent}%")?,
                None => {}
            }
        }
        Ok(())
    }
}

/// An inode of a mount, counted while this lives; it keeps the mount's quota alive, too.
pub struct InodeCharge<M: Machine> {
    superblock: Arc<Superblock<M>>,
}

impl<M: Machine> fmt::Debug for InodeCharge<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InodeCharge").field("superblock", &self.superblock).finish()
    }
}

impl<M: Machine> Drop for InodeCharge<M> {
    fn drop(&mut self) {
        self.superblock.uncount_inode();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_parse_as_linux_does() {
        let options =
            MountOptions::parse("pagesize=2M,size=8M,min_size=50%,nr_inodes=1k,mode=0700,uid=3").unwrap();
        assert_eq!(options.page_size, Some(PageSize::Size2M));
        assert_eq!(options.size, Some(Limit::Bytes(8 << 20)));
        assert_eq!(options.min_size, Some(Limit::Percent(50)));
        assert_eq!((options.inodes, options.mode, options.uid), (Some(1024), Some(0o700), Some(3)));
        for bad in ["pagesize=4k", "size=", "size=-1", "color=red", "mode=9", "size"] {
            assert_eq!(MountOptions::parse(bad), Err(Error::Invalid), "{bad}");
        }
    }
}
