//! All kinds of state that processes and threads have, together.
//!
//! A kind is one line here. The stories ask, capture, write and read all of them at once; only the order in which they
//! are put back is spelt out, in [`crate::restore`].

use crate::image::{Image, Writer};
use crate::program::{Answers, Program};
use crate::resource::{Resource, Stopped};
use crate::{Error, Failure};
use std::collections::BTreeMap;

/// Declares a collection of [`Resource`]s: `field: Kind = "file.json"`. Each kind is a file of the image, in which the
/// state of each process or thread stands under its id.
macro_rules! rooms {
    ($(#[$doc:meta])* $name:ident, $asked:ident { $($(#[$about:meta])* $field:ident: $kind:ty = $file:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub struct $name {
            $($(#[$about])* pub $field: BTreeMap<i32, $kind>,)*
        }

        /// The questions of all kinds, in one program.
        #[derive(Debug)]
        pub struct $asked {
            $($field: <$kind as Resource>::Asked,)*
        }

        impl $name {
            /// Adds every kind's questions to a program.
            pub fn ask(program: &mut Program) -> $asked {
                $asked { $($field: <$kind>::ask(program),)* }
            }

            /// Reads every kind's answers.
            ///
            /// # Errors
            /// Those of [`Resource::capture`].
            pub fn capture(&mut self, task: &Stopped, asked: &$asked, answers: &Answers) -> Result<(), Failure> {
                $(self.$field.insert(task.tid, <$kind>::capture(task, &asked.$field, answers)?);)*
                Ok(())
            }

            /// Writes every kind's file.
            ///
            /// # Errors
            /// Those of the image.
            pub fn write(&self, image: &mut Writer) -> Result<(), Error> {
                $(image.json($file, &self.$field)?;)*
                Ok(())
            }

            /// Reads every kind's file.
            ///
            /// # Errors
            /// Those of the image.
            pub fn read(image: &Image) -> Result<Self, Error> {
                Ok($name { $($field: image.json($file)?,)* })
            }
        }
    };
}
