//! Device specs of vendors (CDI).
