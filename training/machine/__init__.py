"""What a training finds on its machine: devices, memory, speed, and where its time goes."""
