//! Huge pages in the kernel: what memory management asks of them.
//!
//! Until the library's mappings are wired in there is no page size that `MAP_HUGETLB` accepts, so the types below have no values.

use alloc::string::String;
use alloc::sync::Arc;
use core::ops::Range;

use crate::errno::{Errno, Result};
use crate::fs::File;
use crate::memory::PhysAddr;
use crate::mm::fault::FaultError;
use crate::mm::shm::Attachment;
use crate::mm::{AddressSpace, VmFlags};

/// A file of huge pages.
pub enum HugeFile {}

/// What is left of an area when its pages are unmapped.
pub enum HugeLeftover {}

/// An area of huge pages.
pub enum HugeArea {}

pub fn default_page_size() -> u64 {
    2 << 20
}

pub fn is_page_size(_size: u64) -> bool {
    false
}

pub fn page_size_of(_file: &Arc<File>) -> Option<u64> {
    None
}

pub fn check_may_use_shm() -> Result<()> {
    Err(Errno::EINVAL)
}

impl HugeFile {
    pub fn anonymous(_page: u64, _len: u64) -> Result<Arc<Self>> {
        Err(Errno::EINVAL)
    }

    pub fn segment(_page: u64, _len: u64, _no_reserve: bool) -> Result<Arc<Self>> {
        Err(Errno::EINVAL)
    }

    pub fn page_size(&self) -> u64 {
        match *self {}
    }

    pub fn resident_bytes(&self) -> u64 {
        match *self {}
    }
}

impl HugeArea {
    pub fn new(
        _space: &AddressSpace,
        file: Arc<HugeFile>,
        _opened: Option<Arc<File>>,
        _attachment: Option<Attachment>,
        _range: Range<u64>,
        _offset: u64,
        _flags: VmFlags,
    ) -> Result<Self> {
        match *file {}
    }

    pub fn page_size(&self) -> u64 {
        match *self {}
    }

    pub fn file(&self) -> Option<&Arc<File>> {
        match *self {}
    }

    pub fn attachment(&self) -> Option<&Attachment> {
        match *self {}
    }

    pub fn name(&self) -> Option<String> {
        match *self {}
    }

    pub fn id(&self) -> (u64, u64) {
        match *self {}
    }

    pub fn split_off(&mut self, _at: u64) -> Result<Self> {
        match *self {}
    }

    pub fn unmap(self) -> HugeLeftover {
        match self {}
    }

    pub fn fault(&self, _flags: VmFlags, _address: u64, _write: bool) -> Result<(), FaultError> {
        match *self {}
    }

    pub fn protect(&self, _flags: VmFlags) {
        match *self {}
    }

    pub fn fork(&self, _child: &Arc<AddressSpace>, _flags: VmFlags) -> Result<Self> {
        match *self {}
    }

    pub fn move_to(&mut self, _start: u64) -> Result<()> {
        match *self {}
    }

    pub fn discard(&self, _range: Range<u64>) -> Result<()> {
        match *self {}
    }

    pub fn is_resident(&self, _address: u64) -> bool {
        match *self {}
    }

    pub fn resident_bytes(&self) -> (u64, u64) {
        match *self {}
    }

    pub fn frame_at(&self, _address: u64) -> Option<(PhysAddr, bool)> {
        match *self {}
    }

    pub fn with_memory(
        &self,
        _flags: VmFlags,
        _address: u64,
        _write: bool,
        _work: impl FnOnce(*mut u8),
    ) -> Result<(), FaultError> {
        match *self {}
    }
}

/// memfd_create(2) with MFD_HUGETLB. No pool has been set up, so there is no size to choose from.
pub fn memfd(_name: &[u8], _flags: u32) -> Result<Arc<File>> {
    Err(Errno::ENODEV)
}
