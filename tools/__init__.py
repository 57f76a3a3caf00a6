"""What everybody uses and nobody needs to read to understand SRGAN: one small module for each job."""
