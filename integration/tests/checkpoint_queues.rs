//! Pipes, and the descriptors that count, wait and watch.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use ckrun_integration::modes_survive;

modes_survive!("queues":
    pipe pipe_large pipe_full pipe_packets pipe_no_writer pipe_no_reader pipe_between pipe_chain eventfd
    eventfd_semaphore eventfd_waiter signalfd timerfd timerfd_later timerfd_rung epoll epoll_nested
    epoll_oneshot epoll_closed_number epoll_edge epoll_full_edge epoll_unseen_edge epoll_waiter epoll_waiter_timeout
    epoll_over_all epoll_childs_signals poll poll_timeout
    ; else
);
