//! Allocations whose size or number a user decides: they may fail, and give `ENOMEM`.
//!
//! The standard library's `try_reserve` behind names that say what is meant. What is larger than a page must come through here: see
//! [`super::reserve`].

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use super::{PAGE_SIZE, inject};
use crate::arch::percpu;
use crate::errno::{Errno, Result};
use crate::process::{self, Charge};

/// Runs an allocation that can fail. Checked kernels let large ones pass only here.
#[inline]
fn attempt<T, E>(bytes: usize, allocate: impl FnOnce() -> core::result::Result<T, E>) -> Result<T> {
    if inject::fails() {
        return Err(Errno::ENOMEM);
    }
    if bytes <= PAGE_SIZE {
        super::reserve::ask(bytes)?;
    }
    percpu::may_fail(true);
    let result = allocate().map_err(|_| Errno::ENOMEM);
    percpu::may_fail(false);
    result
}

/// Room for `additional` more elements, growing as `push` does.
#[inline]
pub fn reserve<T>(vector: &mut Vec<T>, additional: usize) -> Result<()> {
    if vector.capacity() - vector.len() >= additional {
        return Ok(());
    }
    let wanted = vector.len().saturating_add(additional).max(vector.len() * 2);
    attempt(wanted.saturating_mul(size_of::<T>()), || vector.try_reserve(additional))
}

/// Room for `additional` more elements in a queue.
#[inline]
pub fn reserve_queue<T>(queue: &mut alloc::collections::VecDeque<T>, additional: usize) -> Result<()> {
    if queue.capacity() - queue.len() >= additional {
        return Ok(());
    }
    let wanted = queue.len().saturating_add(additional).max(queue.len() * 2);
    attempt(wanted.saturating_mul(size_of::<T>()), || queue.try_reserve(additional))
}

/// Room for `count` elements in a small vector that is empty.
pub fn reserve_small<A: smallvec::Array>(vector: &mut smallvec::SmallVec<A>, count: usize) -> Result<()> {
    if count <= vector.capacity() {
        return Ok(());
    }
    attempt(count.saturating_mul(size_of::<A::Item>()), || vector.try_reserve_exact(count))
}

/// A box: one of as many as the caller of a system call asks for.
pub fn boxed<T>(value: T) -> Result<Box<T>> {
    attempt(size_of::<T>(), || Ok::<_, Errno>(Box::new(value)))
}

/// A vector with room for `count` elements, and no more.
pub fn with_capacity<T>(count: usize) -> Result<Vec<T>> {
    let mut vector = Vec::new();
    if count > 0 {
        attempt(count.saturating_mul(size_of::<T>()), || vector.try_reserve_exact(count))?;
    }
    Ok(vector)
}

/// A vector of `count` times `value`.
pub fn filled<T: Clone>(value: T, count: usize) -> Result<Vec<T>> {
    let mut vector = with_capacity(count)?;
    vector.resize(count, value);
    Ok(vector)
}

/// A copy of `slice`.
pub fn copy_of<T: Clone>(slice: &[T]) -> Result<Vec<T>> {
    let mut vector = with_capacity(slice.len())?;
    vector.extend_from_slice(slice);
    Ok(vector)
}

/// All that an iterator gives.
pub fn collect<T>(items: impl IntoIterator<Item = T>) -> Result<Vec<T>> {
    let items = items.into_iter();
    let mut vector = with_capacity(items.size_hint().0)?;
    for item in items {
        vector.try_push(item)?;
    }
    Ok(vector)
}

/// Copies what a spin lock guards, without an allocation under it.
///
/// Under the lock [`CopyUnderLock::copy`] copies if there is room. After the lock [`CopyUnderLock::is_done`] says whether there was, or
/// makes room: then all begins again, for what the lock guards may have changed.
pub struct CopyUnderLock<T> {
    copied: Vec<T>,
    wanted: usize,
}

impl<T: Clone> CopyUnderLock<T> {
    /// Without room.
    pub const fn new() -> Self {
        Self { copied: Vec::new(), wanted: 0 }
    }

    /// Copies `slice`, if there is room.
    pub fn copy(&mut self, slice: &[T]) {
        self.wanted = slice.len();
        if self.copied.is_empty() && self.wanted <= self.copied.capacity() {
            self.copied.extend_from_slice(slice);
        }
    }

    /// Whether all is copied; else there is room for as much now. Without the lock.
    pub fn is_done(&mut self) -> Result<bool> {
        if self.copied.len() == self.wanted {
            return Ok(true);
        }
        self.copied = with_capacity(self.wanted)?;
        Ok(false)
    }

    /// The copy. Without the lock.
    pub fn into_vec(self) -> Vec<T> {
        self.copied
    }

    /// What was copied is to be copied again: another part was not done.
    pub fn clear(&mut self) {
        self.copied.clear();
    }
}

/// Growing a vector may fail.
pub trait TryVec<T> {
    /// As `push`.
    fn try_push(&mut self, value: T) -> Result<()>;
    /// As `extend_from_slice`.
    fn try_extend_from_slice(&mut self, slice: &[T]) -> Result<()>
    where
        T: Clone;
    /// As `resize`.
    fn try_resize(&mut self, len: usize, value: T) -> Result<()>
    where
        T: Clone;
}

impl<T> TryVec<T> for Vec<T> {
    #[inline]
    fn try_push(&mut self, value: T) -> Result<()> {
        reserve(self, 1)?;
        self.push(value);
        Ok(())
    }

    fn try_extend_from_slice(&mut self, slice: &[T]) -> Result<()>
    where
        T: Clone,
    {
        reserve(self, slice.len())?;
        self.extend_from_slice(slice);
        Ok(())
    }

    fn try_resize(&mut self, len: usize, value: T) -> Result<()>
    where
        T: Clone,
    {
        reserve(self, len.saturating_sub(self.len()))?;
        self.resize(len, value);
        Ok(())
    }
}

/// A text that grows while it is written, as files of procfs are. What did not fit is remembered, and [`Text::finish`] tells.
#[derive(Default)]
pub struct Text {
    text: String,
    failed: bool,
    /// A long one counts for the process that asks, while it grows.
    charge: Option<Charge>,
}

impl Text {
    /// An empty one.
    pub const fn new() -> Self {
        Self { text: String::new(), failed: false, charge: None }
    }

    /// Appends.
    pub fn push_str(&mut self, text: &str) {
        if self.failed || self.try_reserve(text.len()).is_err() {
            self.failed = true;
            return;
        }
        self.text.push_str(text);
    }

    /// Appends.
    pub fn push(&mut self, character: char) {
        self.push_str(character.encode_utf8(&mut [0; 4]));
    }

    fn try_reserve(&mut self, additional: usize) -> Result<()> {
        if self.text.capacity() - self.text.len() >= additional {
            return Ok(());
        }
        let wanted = (self.text.len() + additional).max(self.text.len() * 2);
        attempt(wanted, || self.text.try_reserve(additional))?;
        if self.text.capacity() > PAGE_SIZE
            && let Some(thread) = process::try_current()
        {
            let charge = self.charge.get_or_insert_with(|| thread.process.charges.add(0));
            charge.grow(self.text.capacity().saturating_sub(charge.bytes()));
        }
        Ok(())
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.text.len()
    }

    /// Bytes that it takes.
    pub fn capacity(&self) -> usize {
        self.text.capacity()
    }

    /// Whether there is nothing yet.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// Its bytes so far, or `ENOMEM`.
    pub fn as_bytes(&self) -> Result<&[u8]> {
        if self.failed { Err(Errno::ENOMEM) } else { Ok(self.text.as_bytes()) }
    }

    /// Begins anew, in the same memory.
    pub fn clear(&mut self) {
        self.text.clear();
        self.failed = false;
    }

    /// The whole text, or `ENOMEM`.
    pub fn into_string(self) -> Result<String> {
        if self.failed { Err(Errno::ENOMEM) } else { Ok(self.text) }
    }

    /// Its bytes, or `ENOMEM`.
    pub fn finish(self) -> Result<Vec<u8>> {
        if self.failed { Err(Errno::ENOMEM) } else { Ok(self.text.into_bytes()) }
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self { text, failed: false, charge: None }
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        let mut new = Self::new();
        new.push_str(text);
        new
    }
}

impl fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push_str(text);
        if self.failed { Err(fmt::Error) } else { Ok(()) }
    }
}
