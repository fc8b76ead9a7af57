//! The source `files`: manifests in few files a namespace, so that a change rewrites one small file.
//!
//! What another source must be able to do is what is public here: say control's flags, begin with a world, change slices, change a route.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::super::Error;
use super::world::{HOT, World};

/// A directory of manifests.
#[derive(Debug)]
pub struct Files {
    watched: PathBuf,
    // Files are made beside it and moved in, so that nobody sees half of one.
    staging: PathBuf,
}

impl Files {
    /// Writes all of a world, every mark as given.
    pub fn begin(dir: &Path, world: &World, marks: &[u64]) -> Result<Self, Error> {
        let files = Self { watched: dir.join("files"), staging: dir.join("staging") };
        for dir in [&files.watched, &files.staging] {
            std::fs::create_dir_all(dir).map_err(|source| Error::File { path: dir.clone(), source })?;
        }
        for namespace in 0..world.namespaces() {
            files.write(&format!("services-{namespace:03}.yaml"), &world.services_of(namespace))?;
        }
        for file in 0..world.files() {
            files.write(&format!("pods-{file:05}.yaml"), &world.pods(world.in_file(file)))?;
            files.slices(world, file, marks)?;
        }
        files.write("pods-hot.yaml", &world.pods(HOT..HOT + 1))?;
        files.hot(world, marks)?;
        files.route("beside", 0)?;
        files.route("edited", 0)?;
        Ok(files)
    }

    /// Where they are.
    pub fn watched(&self) -> &Path {
        &self.watched
    }

    /// Flags by which control reads it.
    pub fn flags(&self) -> [String; 2] {
        ["--files".to_owned(), self.watched.display().to_string()]
    }

    /// Changes the endpoints of the services of one file.
    pub fn slices(&self, world: &World, file: usize, marks: &[u64]) -> Result<(), Error> {
        let services: Range<usize> = world.in_file(file);
        self.write(&format!("slices-{file:05}.yaml"), &world.slices(services, marks))
    }

    /// Changes endpoints of the hot service.
    pub fn hot(&self, world: &World, marks: &[u64]) -> Result<(), Error> {
        self.write("slices-hot.yaml", &world.slices(HOT..HOT + 1, marks))
    }

    /// Edits a route of the hot service.
    pub fn route(&self, name: &str, micros: u64) -> Result<(), Error> {
        self.write(&format!("route-{name}.yaml"), &World::route(name, micros))
    }

    fn write(&self, name: &str, text: &str) -> Result<(), Error> {
        let staged = self.staging.join(name);
        std::fs::write(&staged, text)
            .and_then(|()| std::fs::rename(&staged, self.watched.join(name)))
            .map_err(|source| Error::File { path: staged, source })
    }
}
