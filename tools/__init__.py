"""What everybody uses and nobody needs to read to understand SRGAN; a module for each job."""
