//! stub
mod canvas;
mod law;
mod marks;
mod picture;
mod steady;
