//! The cgroups of a container.
