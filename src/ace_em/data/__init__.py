"""Files in and out: STAR tables, MRC stacks and maps, the particles they describe, and how these are split."""
