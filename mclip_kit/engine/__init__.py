"""Where many items are worked on: in processes of this machine (`local`), or on a cluster (`cluster`)."""
