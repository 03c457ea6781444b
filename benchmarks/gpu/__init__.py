"""All measurements that need a GPU, behind one command."""
