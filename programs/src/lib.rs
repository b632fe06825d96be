//! What the Linux programs here share.
