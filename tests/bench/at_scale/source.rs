//! Where control learns of the mesh: a directory of manifests, or a real API server.

use std::path::Path;

use super::super::Error;
use super::api::{Api, Servers};
use super::files::Files;
use super::world::World;

/// Which of them
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A directory of manifests, watched
    Files,
    /// A real API server with its etcd
    Kubernetes,
}

/// One that has been begun.
pub enum Source {
    Files(Files),
    Kubernetes(Box<Api>),
}

impl Source {
    /// Writes all of a world, every mark as given.
    pub fn begin(kind: Kind, dir: &Path, world: &World, marks: &[u64]) -> Result<Self, Error> {
        Ok(match kind {
            Kind::Files => Self::Files(Files::begin(dir, world, marks)?),
            Kind::Kubernetes => Self::Kubernetes(Box::new(Api::begin(dir, world, marks)?)),
        })
    }

    /// Flags by which control reads it.
    pub fn flags(&self) -> Vec<String> {
        match self {
            Self::Files(files) => files.flags(),
            Self::Kubernetes(api) => api.flags(),
        }
    }

    /// The file with the uids of the proxies' pods, one a line, if they are not those of the world.
    pub fn uids(&self) -> Option<&Path> {
        match self {
            Self::Files(_) => None,
            Self::Kubernetes(api) => Some(api.uids()),
        }
    }

    /// Changes the endpoints of the services of one file. Like the others: done when it is written, or answered.
    pub fn slices(&self, world: &World, file: usize, marks: &[u64]) -> Result<(), Error> {
        match self {
            Self::Files(files) => files.slices(world, file, marks),
            Self::Kubernetes(api) => api.slices(world, world.in_file(file), marks),
        }
    }

    /// Changes endpoints of the hot service.
    pub fn hot(&self, world: &World, marks: &[u64]) -> Result<(), Error> {
        match self {
            Self::Files(files) => files.hot(world, marks),
            Self::Kubernetes(api) => api.hot(world, marks),
        }
    }

    /// Edits a route of the hot service.
    pub fn route(&self, name: &str, micros: u64) -> Result<(), Error> {
        match self {
            Self::Files(files) => files.route(name, micros),
            Self::Kubernetes(api) => api.route(name, micros),
        }
    }

    /// What stands behind it, as processes; none behind files.
    pub fn servers(&self) -> Result<Option<Servers>, Error> {
        match self {
            Self::Files(_) => Ok(None),
            Self::Kubernetes(api) => api.servers().map(Some),
        }
    }
}
