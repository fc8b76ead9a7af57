//! Model -> resources.
