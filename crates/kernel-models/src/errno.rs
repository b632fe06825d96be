//! The errors that the modelled files name.

/// An error number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errno {
    ERESTARTSYS,
    ETIMEDOUT,
}
