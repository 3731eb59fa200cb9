"""What `import p2pl` offers: join, simulate, create and load, one file each."""
